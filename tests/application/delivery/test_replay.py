"""What was stored goes out when the user is there: in order, once, and to all devices."""

import asyncio
from datetime import timedelta

import pytest

from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.application.delivery.replay import MAX_IN_FLIGHT
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import Forbidden
from eyewall.domain.identity import ConnMeta, UserId
from eyewall.domain.mailbox import StoredMessage
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import FailureReason, SendOptions
from tests.application.engines import Bus, Engine
from tests.application.fakes import CODEC, START, settle

ADA, BOB = UserId("ada"), UserId("bob")
STORE = SendOptions(offline="store", ack_timeout=1.0)


@pytest.fixture
def store(clock):
    return Engine(MemoryOffline(clock=clock.now))


@pytest.fixture
def pair_config(store):
    return {"offline": store}


async def put(node, store, numbers, user=ADA, **fields):
    """Have messages in the store that nobody was sent."""
    for number in numbers:
        frame = node.parts.sender.encode(Message("old", data=number, id=f"m{number}"), ack=True)
        await store.inner.store(
            user, StoredMessage(f"m{number}", frame.payload, Priority.NORMAL, START, **fields)
        )


async def kept(store, user=ADA):
    return [message.id for _, message in await store.inner.waiting(user, 0, 1000, START)]


def numbers(messages):
    return [message["data"] for message in messages if message["topic"] == "old"]


def ack_all(client):
    """Answer what was heard; return it."""
    messages = client.heard()
    for message in messages:
        client.ack(message)
    return messages


# --- one device


async def test_what_was_stored_comes_at_the_next_connect(one, store):
    await one.hub.send_to_user("ada", Message("news", data=1), STORE)
    await one.hub.send_to_user("ada", Message("news", data=2), STORE)
    ids = await kept(store)

    ada = await one.connect("ada")

    heard = ada.heard()
    assert [(m["id"], m["data"], m["ack"]) for m in heard] == [(ids[0], 1, True), (ids[1], 2, True)]
    assert await kept(store) == ids, "it is removed only when it is acked"


@pytest.mark.parametrize("answer", ["ack", "nack"])
async def test_it_is_removed_when_it_is_answered(one, store, answer):
    await put(one, store, range(3))
    ada = await one.connect("ada")
    getattr(ada, answer)(ada.heard()[1])
    await settle()
    assert await kept(store) == ["m0", "m2"]

    await one.advance(5.0)
    await ada.vanish()
    again = await one.connect("ada")

    assert numbers(again.heard()) == [0, 2]


async def test_the_first_messages_are_written_before_reading_begins(one, store):
    """A client's first request is answered after them, whatever it asks for."""
    await put(one, store, range(3))
    link = one.link()
    opened = await one.transport_events.open(
        link, ConnMeta(user_id=ADA), one.transport_events.reserve(None), session=False
    )

    assert opened
    assert len(link.frames) == 3


async def test_it_comes_after_the_hooks(one, store):
    await put(one, store, range(1))

    @one.hub.on_connect
    async def greet(conn):
        await conn.send("hello")

    ada = await one.connect("ada", session=True)

    assert [m["topic"] for m in ada.heard()] == ["hello", "old"]
    assert ada.welcome is not None


async def test_who_is_refused_gets_nothing(one, store):
    await put(one, store, range(1))

    @one.hub.on_connect
    async def refuse(conn):
        raise Forbidden("not today")

    ada = await one.connect("ada")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION
    assert ada.heard() == []
    assert await kept(store) == ["m0"]


async def test_who_is_still_being_let_in_is_left_out(one, store):
    """A second device is asked by a hook while the first gets its messages."""
    await put(one, store, range(2))
    gate = asyncio.Event()

    @one.hub.on_connect
    async def slow(conn):
        if conn.meta.device_id == "slow":
            await gate.wait()

    link = one.link()
    opening = asyncio.ensure_future(one.connect("ada", link=link, device_id="slow"))
    await settle()
    phone = await one.connect("ada")
    assert numbers(phone.heard()) == [0, 1]
    assert link.frames == []

    gate.set()
    await opening
    assert len(link.frames) == 2


async def test_nobody_else_gets_it(one, store):
    await put(one, store, range(1))
    bob, nobody = await one.connect("bob"), await one.connect()

    assert (bob.heard(), nobody.heard()) == ([], [])


async def test_no_more_than_the_window_is_unanswered(one, store):
    await put(one, store, range(100))
    ada = await one.connect("ada")
    first = ada.heard()
    assert numbers(first) == list(range(MAX_IN_FLIGHT))

    for message in first[:10]:
        ada.ack(message)
    await settle()

    assert numbers(ada.heard()) == list(range(MAX_IN_FLIGHT, MAX_IN_FLIGHT + 10))


async def test_all_comes_in_order(one, store):
    await put(one, store, range(200))
    ada = await one.connect("ada")
    heard = []
    while messages := ack_all(ada):
        heard += numbers(messages)
        await settle()

    assert heard == list(range(200))
    assert await kept(store) == []


async def test_one_missing_ack_holds_nothing_back(one, store):
    await put(one, store, range(100))
    ada = await one.connect("ada")
    heard = []
    while messages := ada.heard():
        heard += numbers(messages)
        for message in messages:
            if message["data"] != 3:
                ada.ack(message)
        await settle()

    assert heard == list(range(100)), "it took its place, and nothing more"
    await one.advance(5.0)
    assert await kept(store) == ["m3"]
    assert len(one.parts.stored.replays) == 0


async def test_a_client_that_never_acks_gets_the_rest_when_the_first_time_out(one, store):
    failures = []
    one.hub.on_timeout(failures.append)
    await put(one, store, range(40))
    ada = await one.connect("ada")
    await one.advance(4.9)
    assert len(ada.heard()) == 32

    await one.advance(0.2)

    assert numbers(ada.heard()) == list(range(32, 40))
    assert {f.reason for f in failures} == {FailureReason.ACK_TIMEOUT}
    assert {f.recipient for f in failures} == {"ada"}
    await one.advance(10.0)
    assert len(await kept(store)) == 40
    assert ada.heard() == [], "each once in a replay"


async def test_a_late_ack_removes_it(one, store):
    await put(one, store, range(2))
    ada = await one.connect("ada")
    _, second = ada.heard()
    await one.advance(6.0)
    ada.ack(second)
    await settle()

    assert await kept(store) == ["m0"]


async def test_what_came_too_late_is_not_delivered(one, store):
    await put(one, store, [1], expires_at=START + timedelta(seconds=60))
    await put(one, store, [2], expires_at=START + timedelta(seconds=61))
    one.clock.pass_time(60)

    ada = await one.connect("ada")

    assert numbers(ada.heard()) == [2]
    await one.advance(2.0)
    assert len(one.parts.stored.replays) == 0, "nobody waits for its ack beyond its time"


async def test_it_ends_with_the_last_connection(one, store):
    await put(one, store, range(50))
    ada = await one.connect("ada")
    await ada.vanish()

    assert len(one.parts.stored.replays) == 0
    assert len(await kept(store)) == 50
    assert await store.inner.claim(ADA, "anybody", 1) == "anybody"


async def test_what_does_not_fit_the_queue_is_not_overtaken(one, store):
    await put(one, store, range(10))
    link = one.link(queue=QueueConfig(size=4))
    link.stalled = True
    ada = await one.connect("ada", link=link)
    link.read()
    await settle()
    for message in ada.heard():
        ada.ack(message)
    await one.advance(6.0)
    assert await kept(store) == [f"m{n}" for n in range(4, 10)]

    await ada.vanish()
    assert numbers((await one.connect("ada")).heard()) == list(range(4, 10))


async def test_what_is_unreadable_is_removed_and_logged(one, store):
    await store.inner.store(ADA, StoredMessage("bad", b"{", Priority.NORMAL, START))
    other = CODEC.encode(one.parts.sender.encode(Message("old", id="else")).envelope)
    await store.inner.store(ADA, StoredMessage("wrong", other, Priority.NORMAL, START))
    await put(one, store, [1])

    ada = await one.connect("ada")

    assert numbers(ada.heard()) == [1]
    assert one.logger.of("error") == ["stored_message_unreadable"] * 2
    assert await kept(store) == ["m1"]


async def test_who_becomes_the_user_later_has_come_as_well(one, store):
    """An application may let clients in first, and have them log in by a message."""
    await put(one, store, [1])
    ada = await one.connect()
    one.hub.set_meta(ada.id, user_id="ada")
    await settle()

    assert numbers(ack_all(ada)) == [1]
    await settle()
    assert await kept(store) == []


async def test_who_becomes_the_user_in_a_hook_gets_it_once(one, store):
    await put(one, store, [1])

    @one.hub.on_connect
    async def login(conn):
        one.hub.set_meta(conn.id, user_id="ada")

    ada = await one.connect()

    assert numbers(ada.heard()) == [1]


async def test_newer_messages_wait_from_the_step_in_which_somebody_is_let_in(one, store):
    await put(one, store, [1])
    replays = one.parts.stored.replays
    store.before = {"waiting"}
    link = one.link()
    opening = asyncio.ensure_future(one.connect("ada", link=link))
    await settle()
    assert ADA in replays.barrier

    store.go_on()
    await opening
    assert ADA not in replays.barrier
    replays.begin(ADA)
    assert ADA in replays.barrier, "before the replay has had its turn"


async def test_they_wait_again_when_it_is_tried_again(one, store):
    await put(one, store, [1])
    store.away = True
    ada = await one.connect("ada")
    assert ADA not in one.parts.stored.replays.barrier
    store.away = False
    store.before = {"waiting"}
    await one.advance(5.0)
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", Message("new")))
    await settle()
    assert not sending.done()
    store.go_on()
    await sending

    assert [message["topic"] for message in ada.heard()] == ["old", "new"]


# --- several devices


async def test_they_wait_as_long_as_somebody_new_has_not_got_what_is_stored(one, store):
    """One that comes while the stored ones are looked for breaks that off, and it begins
    again: newer messages do not slip through in between."""
    await put(one, store, [1, 2])
    await one.connect("ada")
    store.before.add("waiting")
    coming = []
    for _ in range(2):
        coming.append(asyncio.create_task(one.connect("ada")))
        await settle()
    sending = asyncio.create_task(one.hub.send_to_user("ada", Message("new", data=3)))
    await settle()

    store.go_on()
    store.before.add("waiting")  # the store is as slow the next time
    await settle()
    assert not sending.done()
    store.go_on()
    clients = await asyncio.gather(*coming)
    await sending
    await settle()

    for client in clients:
        assert [m["data"] for m in client.heard()] == [1, 2, 3]


async def test_the_right_to_replay_is_kept_until_all_has_been_answered(one, store):
    """Another node would send it once more."""
    await put(one, store, [1])
    ada = await one.connect("ada")
    mine = one.node.config.node_id

    assert await store.inner.claim(ADA, "other", 1.0) == mine
    ack_all(ada)
    await settle()

    assert await store.inner.claim(ADA, "other", 1.0) == "other"


async def test_two_devices_get_it_in_one_replay(one, store):
    await put(one, store, range(60))
    phone = await one.connect("ada")
    laptop = await one.connect("ada")
    heard = {phone: [], laptop: []}
    while any(messages := {client: ack_all(client) for client in heard}.values()):
        for client, found in zip(heard, messages, strict=True):
            heard[client] += numbers(found)
        await settle()

    assert store.calls.count("release") == 1
    assert heard[phone] == list(range(60))
    assert heard[laptop] == list(range(60))
    assert await kept(store) == []


async def test_the_first_answer_of_any_device_frees_the_window(one, store):
    """A device that is gone without a word does not slow down the other."""
    await put(one, store, range(100))
    await one.connect("ada")
    laptop = await one.connect("ada")
    heard = []
    while messages := ack_all(laptop):
        heard += numbers(messages)
        await settle()

    assert heard == list(range(100))
    assert await kept(store) == []


async def test_who_comes_meanwhile_gets_all_that_is_left_from_the_first(one, store):
    await put(one, store, range(50))
    phone = await one.connect("ada")
    for message in phone.heard()[:5]:
        phone.ack(message)
    await settle()

    laptop = await one.connect("ada")

    assert numbers(laptop.heard()) == list(range(5, 37))
    assert numbers(phone.heard()) == list(range(32, 37))


async def test_who_comes_when_all_has_been_written_gets_what_is_unanswered(one, store):
    await put(one, store, range(3))
    phone = await one.connect("ada")
    phone.ack(phone.heard()[0])
    await settle()

    laptop = await one.connect("ada")

    assert numbers(laptop.heard()) == [1, 2]
    assert phone.heard() == []


# --- several nodes


@pytest.fixture
async def both(make_node, store):
    return await make_node("n1", offline=store), await make_node("n2", offline=store)


async def test_one_replay_serves_devices_on_all_nodes(both, store):
    one, other = both
    await put(one, store, range(40))
    phone = await one.connect("ada")
    laptop = await other.connect("ada")
    assert numbers(laptop.heard()) == list(range(32))

    for message in phone.heard():
        phone.ack(message)
    await settle()

    assert numbers(phone.heard()) == list(range(32, 40))
    assert numbers(laptop.heard()) == list(range(32, 40))
    await one.advance(10.0)
    assert [len(node.parts.stored.replays) for node in both] == [0, 0]
    assert len(await kept(store)) == 8


async def test_an_ack_on_another_node_removes_it(both, store):
    one, other = both
    await put(one, store, range(2))
    await one.connect("ada")
    laptop = await other.connect("ada")
    ack_all(laptop)
    await settle()

    assert await kept(store) == []


async def test_a_node_that_died_is_taken_over_from(both, store):
    one, other = both
    await put(one, store, range(2))
    await store.inner.claim(ADA, "n9", 1000)

    ada = await other.connect("ada")

    assert numbers(ada.heard()) == [0, 1]


async def test_a_claim_that_its_owner_has_forgotten_is_given_back(both, store):
    one, other = both
    await put(one, store, range(2))
    await store.inner.claim(ADA, "n1", 1000)

    ada = await other.connect("ada")

    assert numbers(ada.heard()) == [0, 1]


async def test_a_node_that_does_not_answer_holds_nobody_up(make_node, store):
    """It is alive by its lease, and hears nothing: its claim lapses by itself."""
    bus = Bus()
    one = await make_node("n1", offline=store, pubsub=bus)
    other = await make_node("n2", offline=store, pubsub=bus)
    await put(one, store, range(2))
    await store.inner.claim(ADA, "n1", 20)
    bus.deaf.add("eyewall:node:n1")

    ada = await other.connect("ada")
    assert ada.heard() == []
    await one.advance(19.0)
    assert ada.heard() == []
    await one.advance(11.0)

    assert numbers(ada.heard()) == [0, 1]


async def test_a_replay_that_goes_on_elsewhere_takes_newer_connections_in(both, store):
    one, other = both
    await put(one, store, range(40))
    await one.connect("ada")
    await one.advance(2.0)
    laptop = await other.connect("ada")

    assert numbers(laptop.heard()) == list(range(32))
    assert await store.inner.claim(ADA, "n3", 1) == "n1"


# --- who comes while it is being stored


async def test_who_connects_while_it_is_being_stored_gets_it(one, store):
    store.before = {"store"}
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", Message("old", data=1), STORE))
    await settle()
    ada = await one.connect("ada")
    assert ada.heard() == []

    store.go_on()
    await sending
    await settle()

    assert numbers(ada.heard()) == [1]


async def test_who_connects_to_another_node_meanwhile_gets_it(both, store):
    one, other = both
    store.before = {"store"}
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", Message("old", data=1), STORE))
    await settle()
    ada = await other.connect("ada")
    store.go_on()
    await sending
    await settle()

    assert numbers(ada.heard()) == [1]


async def test_who_did_not_answer_is_not_sent_it_again_at_once(one, store):
    ada = await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", Message("old", data=1), STORE))
    await one.advance(1.0)
    assert (await sending).stored == 1
    await settle()

    assert numbers(ada.heard()) == [1]


# --- the store is away


async def test_a_store_that_is_away_delays_no_connect(one, store):
    await put(one, store, range(2))
    store.away = True
    ada = await one.connect("ada")
    assert ada.conn.is_open
    assert "replay_stopped" in one.logger.of("warning")
    assert (await one.hub.send_to_user("ada", Message("new"))).success == 1

    store.away = False
    await one.advance(5.0)

    assert [m["topic"] for m in ada.heard()] == ["new", "old", "old"]


async def test_it_is_tried_again_as_long_as_the_user_is_there(one, store):
    store.away = True
    ada = await one.connect("ada")
    await one.advance(60.0)
    assert store.calls.count("waiting") == 13
    await ada.vanish()
    await one.advance(60.0)

    assert store.calls.count("waiting") == 13
    assert len(one.parts.stored.replays) == 0


async def test_who_comes_meanwhile_is_reason_for_a_try_at_once(one, store):
    await put(one, store, [1])
    store.away = True
    await one.connect("ada")
    store.away = False
    laptop = await one.connect("ada")

    assert numbers(laptop.heard()) == [1]


async def test_what_could_not_be_removed_comes_again_under_its_id(one, store):
    await put(one, store, [1])
    ada = await one.connect("ada")
    store.away = True
    ack_all(ada)
    await settle()
    assert "answered_message_kept" in one.logger.of("warning")
    store.away = False
    await ada.vanish()
    again = await one.connect("ada")

    assert [message["id"] for message in again.heard()] == ["m1"]


# --- the end


async def test_a_node_that_drains_begins_nothing(one, store):
    await put(one, store, range(100))
    ada = await one.connect("ada")
    one.parts.connections.draining = True
    ack_all(ada)
    await settle()

    assert ada.heard() == []
    assert len(one.parts.stored.replays) == 0


async def test_a_node_that_stops_gives_its_claims_back(one, store):
    await put(one, store, range(100))
    await one.connect("ada")
    await one.stop()

    assert await store.inner.claim(ADA, "other", 1) == "other"
    assert len(await kept(store)) == 100


async def test_a_connect_of_a_user_without_messages_costs_one_look(one, store):
    await one.connect("ada")

    assert store.calls == ["open", "waiting"]
    assert len(one.parts.stored.replays) == 0
