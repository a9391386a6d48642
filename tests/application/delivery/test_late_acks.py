"""An ack that comes too late still says that the client has the message."""

import asyncio

import pytest

from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.application.delivery import late_acks as module
from eyewall.domain.envelope import Message
from eyewall.domain.identity import UserId
from eyewall.domain.report import SendOptions
from tests.application.engines import Engine
from tests.application.fakes import START, settle

NEWS = Message("news", data=1)
STORED = SendOptions(offline="store", ack_timeout=1.0)
ADA = UserId("ada")


@pytest.fixture
async def store():
    return Engine(MemoryOffline())


@pytest.fixture
def pair_config(store):
    return {"offline": store}


async def kept(store, user=ADA):
    return [message.id for _, message in await store.inner.waiting(user, 0, 100, START)]


async def timed_out(one, *clients):
    """Send to ada, who does not answer; return the message as the clients heard it."""
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", NEWS, STORED))
    await settle()
    heard = [client.heard()[0] for client in clients]
    await one.advance(1.0)
    assert (await sending).stored == len(clients)
    return heard[0]


@pytest.mark.parametrize("answer", ["ack", "nack"])
async def test_a_late_answer_takes_it_out_of_the_store(one, store, answer):
    ada = await one.connect("ada")
    message = await timed_out(one, ada)
    assert await kept(store) == [message["id"]]

    getattr(ada, answer)(message)
    await settle()

    assert await kept(store) == []
    assert one.hub.stats().stray_acks == 0


async def test_a_second_late_answer_is_a_stray_one(one, store):
    ada = await one.connect("ada")
    message = await timed_out(one, ada)
    ada.ack(message)
    ada.ack(message)
    await settle()

    assert one.hub.stats().stray_acks == 1


async def test_it_counts_only_from_the_connection_that_it_went_to(one, store):
    ada = await one.connect("ada")
    message = await timed_out(one, ada)
    other, eve = await one.connect("ada"), await one.connect("eve")
    for stranger in (eve, other):
        stranger.heard()
    eve.ack(message)
    await settle()

    assert await kept(store) == [message["id"]]
    assert one.hub.stats().stray_acks == 1


async def test_an_answer_while_it_is_being_stored_counts(one, store):
    """The time-out is over and the store has not finished: what comes in between."""
    ada = await one.connect("ada")
    store.before = {"store"}
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", NEWS, STORED))
    await settle()
    [message] = ada.heard()
    await one.advance(1.0)
    ada.ack(message)
    await settle()
    store.go_on()
    await sending

    assert await kept(store) == []


async def test_a_store_that_is_away_is_logged_and_the_message_stays(one, store):
    ada = await one.connect("ada")
    message = await timed_out(one, ada)
    store.away = True
    ada.ack(message)
    await settle()

    assert "answered_message_kept" in one.logger.of("warning")
    assert await kept(store) == [message["id"]]


async def test_what_is_remembered_is_bounded(one, monkeypatch):
    monkeypatch.setattr(module, "MEMORY", 2)
    ada = await one.connect("ada")
    for _ in range(4):
        await timed_out(one, ada)

    assert len(one.parts.stored.late_acks) == 2


async def test_who_has_no_name_has_nothing_stored(one):
    nobody = await one.connect()
    asked = asyncio.ensure_future(one.hub.request(nobody.id, NEWS, 1.0))
    await settle()
    [message] = nobody.heard()
    await one.advance(1.0)
    nobody.ack(message)
    await settle()
    await asyncio.gather(asked, return_exceptions=True)

    assert len(one.parts.stored.late_acks) == 0
    assert one.hub.stats().stray_acks == 1
