"""What nobody of a user has answered is stored before the call returns."""

import asyncio
from datetime import timedelta

import pytest

from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.application.delivery import replay
from eyewall.domain.ack_result import Acker
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import (
    AckTimeout,
    Misuse,
    Nacked,
    QueueFull,
    Unavailable,
    UserOffline,
)
from eyewall.domain.identity import UserId
from eyewall.domain.mailbox import StoredMessage
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import DeliveryStatus, FailureReason, SendOptions, Target
from eyewall.domain.retry import RetryPolicy
from tests.application.engines import Engine
from tests.application.fakes import START, settle

NEWS = Message("news", data={"n": 1})
STORE = SendOptions(offline="store", ack_timeout=1.0)
ADA, BOB = UserId("ada"), UserId("bob")
EVEN = RetryPolicy(base_delay=1.0, jitter=0, max_retries=2)


@pytest.fixture
async def store():
    return Engine(MemoryOffline(max_messages=3))


@pytest.fixture
def pair_config(store):
    return {"offline": store}


@pytest.fixture
def told(one):
    """What the failure handlers hear: reason and recipient."""
    heard = []
    one.hub.on_send_failure(lambda failure: heard.append((failure.reason, failure.recipient)))
    return heard


async def kept(store, user=ADA):
    return [message for _, message in await store.inner.waiting(user, 0, 100, START)]


async def through(one, call, seconds=5):
    """Let the time pass that the call takes."""
    task = asyncio.ensure_future(call)
    await settle()
    for _ in range(seconds):
        if not task.done():
            await one.advance(1.0)
    return await task


def status(report):
    return [found.status.value for found in report.reports]


# --- what is stored


async def test_what_is_sent_to_a_user_who_is_away_is_stored(one, store, told):
    report = await one.hub.send_to_user("ada", NEWS, STORE)

    assert (report.total, report.stored, report.failed) == (1, 1, 0)
    assert report.reports[0].target == "ada"
    assert report.reports[0].error is None
    assert told == [(FailureReason.USER_OFFLINE, "ada")]
    [message] = await kept(store)
    assert b'"ack":true' in message.payload
    assert b'"id":"%s"' % message.id.encode() in message.payload
    assert message.stored_at == START


async def test_it_is_stored_before_the_call_returns(one, store):
    store.before = {"store"}
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", NEWS, STORE))
    await settle()
    assert not sending.done()

    store.go_on()
    assert (await sending).stored == 1


async def test_what_no_device_has_acked_is_stored(one, store, told):
    """A half-open connection loses nothing."""
    phone, laptop = await one.connect("ada"), await one.connect("ada")

    report = await through(one, one.hub.send_to_user("ada", NEWS, STORE))

    assert status(report) == ["stored", "stored"]
    assert {found.target for found in report.reports} == {phone.id, laptop.id}
    assert told == [(FailureReason.ACK_TIMEOUT, "ada")] * 2
    assert [message.id for message in await kept(store)] == [phone.heard()[0]["id"]]


async def test_one_ack_settles_it(one, store):
    phone, _ = await one.connect("ada"), await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", NEWS, STORE))
    await settle()
    phone.ack(phone.heard()[0])

    report = await through(one, sending)

    assert sorted(status(report)) == ["failed", "ok"]
    assert await kept(store) == []


async def test_a_nack_settles_it(one, store):
    phone, _ = await one.connect("ada"), await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", NEWS, STORE))
    await settle()
    phone.nack(phone.heard()[0])

    report = await through(one, sending)

    assert status(report) == ["failed", "failed"]
    assert isinstance(report.reports[0].error, Nacked)
    assert await kept(store) == []


async def test_all_tries_come_first(one, store):
    ada = await one.connect("ada")
    options = SendOptions(offline="store", ack_timeout=1.0, retry_max=2, retry_backoff=0.0)

    report = await through(one, one.hub.send_to_user("ada", NEWS, options))

    assert report.reports[0].attempts == 3
    assert len({message["id"] for message in ada.heard()}) == 1
    assert len(await kept(store)) == 1


async def test_a_connection_that_closes_loses_nothing(one, store):
    ada = await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", NEWS, STORE))
    await settle()
    await ada.vanish()

    assert status(await sending) == ["stored"]
    assert len(await kept(store)) == 1


async def test_a_full_queue_loses_nothing(one, store):
    ada = await one.connect("ada")
    ada.link.full = True

    assert status(await one.hub.send_to_user("ada", NEWS, STORE)) == ["stored"]
    assert len(await kept(store)) == 1


async def test_each_user_has_their_own(one, store):
    ada = await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_users(["ada", "bob"], NEWS, STORE))
    await settle()
    ada.ack(ada.heard()[0])
    report = await through(one, sending)

    assert (report.total, report.success, report.stored) == (2, 1, 1)
    assert await kept(store) == []
    assert len(await kept(store, BOB)) == 1


async def test_the_message_s_own_id_and_priority_are_kept(one, store):
    message = Message("news", id="mine", priority=Priority.HIGH)
    await one.hub.send_to_user("ada", message, STORE)
    await one.hub.send_to_user("ada", message, STORE)

    [found] = await kept(store)
    assert (found.id, found.priority) == ("mine", Priority.HIGH)


async def test_its_time_to_live_counts_from_the_call(one, store):
    await one.connect("ada")
    options = SendOptions(offline="store", ack_timeout=2.0, ttl=60)

    await through(one, one.hub.send_to_user("ada", NEWS, options))

    [message] = await kept(store)
    assert message.expires_at == START + timedelta(seconds=60)


async def test_what_is_worthless_by_then_is_not_stored(one, store):
    await one.connect("ada")
    options = SendOptions(offline="store", ack_timeout=2.0, ttl=1.0)

    report = await through(one, one.hub.send_to_user("ada", NEWS, options))

    assert status(report) == ["failed"]
    assert await kept(store) == []


async def test_a_ttl_beyond_every_date_is_none(one, store):
    await one.hub.send_to_user("ada", NEWS, SendOptions(offline="store", ttl=1e15))

    assert [message.expires_at for message in await kept(store)] == [None]


# --- when it is not


async def test_without_being_asked_nothing_is_stored(one, store):
    assert (await one.hub.send_to_user("ada", NEWS)).failed == 1
    assert (await one.hub.send_to_user("ada", NEWS, SendOptions(offline="drop"))).failed == 1

    assert await kept(store) == []


async def test_the_server_s_default_counts_where_the_options_say_nothing(make_node):
    store = Engine(MemoryOffline())
    one = await make_node(offline=store, offline_default="store")

    assert (await one.hub.send_to_user("ada", NEWS)).stored == 1
    assert (await one.hub.send_to_user("ada", NEWS, SendOptions(ttl=60))).stored == 1
    assert (await one.hub.send_to_user("ada", NEWS, SendOptions(offline="drop"))).failed == 1
    assert len(await kept(store)) == 2


async def test_without_a_store_asking_for_it_is_a_mistake(make_node):
    one = await make_node()

    with pytest.raises(Misuse, match="offline"):
        await one.hub.send_to_user("ada", NEWS, STORE)
    with pytest.raises(Misuse, match="offline"):
        await one.hub.send_to_users(["ada"], NEWS, STORE)
    with pytest.raises(Misuse, match="offline"):
        await one.hub.send_to_user_with_retry("ada", NEWS, None, STORE)


async def test_rooms_and_connections_are_never_away(one):
    ada = await one.connect("ada")

    for call in (
        one.hub.emit_to_room("lab", NEWS, STORE),
        one.hub.deliver(ada.id, NEWS, STORE),
        one.hub.broadcast_with_filter(NEWS, lambda meta: True, STORE),
    ):
        with pytest.raises(ValueError, match="to users"):
            await call
    assert ada.heard() == []


@pytest.mark.parametrize("online", [True, False])
async def test_a_store_that_is_away_is_reported(one, store, told, online):
    if online:
        await one.connect("ada")
    store.away = True

    report = await through(one, one.hub.send_to_user("ada", NEWS, STORE))

    assert status(report) == ["failed"]
    assert isinstance(report.reports[0].error, Unavailable)
    first = FailureReason.ACK_TIMEOUT if online else FailureReason.USER_OFFLINE
    assert told == [(first, "ada"), (FailureReason.CONN_ERROR, "ada")]


async def test_what_can_not_be_encoded_is_raised(one):
    with pytest.raises(Misuse):
        await one.hub.send_to_user("ada", Message("news", data=object()), STORE)
    with pytest.raises(ValueError, match="must be a Message"):
        await one.hub.send_to_user("ada", "news", STORE)


# --- with retries


@pytest.mark.parametrize("fate", ["silent", "closed"])
async def test_with_retries_an_earlier_nack_settles_it(one, store, fate):
    """It is stored only when nobody of the user has answered, in all tries."""
    ada, other = await one.connect("ada"), await one.connect("ada")
    sending = asyncio.create_task(one.hub.send_to_user_with_retry("ada", NEWS, EVEN, STORE))
    await settle()
    ada.nack(ada.heard()[0], "no room")
    if fate == "closed":
        await other.vanish()
    await one.advance(10.0)

    result = await sending

    assert (result.success, await kept(store)) == (False, [])
    first = result.reports[0]
    assert (first.conn_id, first.acked, type(first.error)) == (ada.id, False, Nacked)


async def test_with_retries_it_is_stored_when_none_is_left(one, store):
    ada = await one.connect("ada")

    result = await through(one, one.hub.send_to_user_with_retry("ada", NEWS, EVEN, STORE), 10)

    assert result.success
    assert result.final_error is None
    assert [attempt.success for attempt in result.attempts] == [False, False, True]
    assert [message.id for message in await kept(store)] == [ada.heard()[0]["id"]]


async def test_with_retries_a_user_who_is_away_is_stored_at_once(one, store):
    result = await one.hub.send_to_user_with_retry("ada", NEWS, EVEN, STORE)

    assert (result.success, len(result.attempts)) == (True, 1)
    assert len(await kept(store)) == 1


async def test_with_retries_what_was_answered_is_not_stored(one, store):
    ada = await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, EVEN, STORE))
    await one.advance(2.0)
    ada.ack(ada.heard()[1])
    result = await through(one, sending)
    assert (result.success, len(result.attempts)) == (True, 2)

    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, EVEN, STORE))
    await settle()
    ada.nack(ada.heard()[-1])
    result = await through(one, sending)

    assert isinstance(result.final_error, Nacked)
    assert await kept(store) == []


async def test_with_retries_a_store_that_is_away_is_the_last_error(one, store):
    store.away = True

    result = await one.hub.send_to_user_with_retry("ada", NEWS, EVEN, STORE)

    assert not result.success
    assert isinstance(result.final_error, Unavailable)


# --- what has to go


async def test_what_has_to_go_is_counted_and_told(one, store):
    queue, failures = [], []
    one.hub.on_queue_full(queue.append)
    one.hub.on_send_failure(failures.append)
    for number in range(4):
        await one.hub.send_to_user("ada", Message("news", data=number), STORE)

    [failure] = queue
    assert (failure.recipient, failure.reason) == ("ada", FailureReason.QUEUE_FULL)
    assert isinstance(failure.error, QueueFull)
    assert failure.message.data.decode() == 0
    assert failure in failures
    assert one.hub.stats().drops == 1
    assert len(await kept(store)) == 3


async def test_what_is_too_old_is_removed_counted_and_told(one, store):
    late = []
    one.hub.on_timeout(late.append)
    await one.hub.send_to_user("ada", NEWS, SendOptions(offline="store", ttl=90))
    await one.advance(60.0)
    assert late == []

    await one.advance(60.0)

    [failure] = late
    assert (failure.recipient, failure.reason) == ("ada", FailureReason.TIMEOUT)
    assert isinstance(failure.error, AckTimeout)
    assert one.hub.stats().drops == 1
    assert len(store.inner) == 0


async def test_the_sweep_goes_on_when_the_store_was_away(one, store):
    await one.hub.send_to_user("ada", NEWS, SendOptions(offline="store", ttl=1))
    store.away = True
    await one.advance(60.0)
    assert one.logger.of("warning") == ["offline_not_swept"]
    store.away = False
    await one.advance(60.0)

    assert len(store.inner) == 0


async def test_a_store_that_hangs_collects_no_sweeps(one, store):
    store.before = {"expire"}
    await one.advance(600.0)

    assert store.calls.count("expire") == 1
    store.go_on()


async def test_the_sweep_ends_with_the_node(one, store, clock):
    await one.stop()

    assert not clock.timers


# --- behind what is stored


async def silent(one, store, count=40):
    """Ada is here, and does not answer what was stored for her."""
    for number in range(count):
        await store.inner.store(ADA, await message_of(one, number))
    return await one.connect("ada")


async def message_of(one, number):
    frame = one.parts.sender.encode(Message("old", data=number), ack=True)
    return StoredMessage(frame.envelope.id, frame.payload, Priority.NORMAL, START)


@pytest.fixture
async def roomy(make_node):
    store = Engine(MemoryOffline())
    return await make_node(offline=store), store


@pytest.mark.parametrize("options", [None, SendOptions(require_ack=True), STORE])
async def test_newer_messages_come_after_the_stored_ones(roomy, options):
    one, store = roomy
    ada = await silent(one, store)
    sending = [
        asyncio.ensure_future(one.hub.send_to_user("ada", Message("new", data=n), options))
        for n in range(3)
    ]
    await settle()
    assert len(ada.heard()) == 32

    await one.advance(5.0)
    heard = ada.heard()
    assert [(m["topic"], m["data"]) for m in heard] == [
        *(("old", n) for n in range(32, 40)),
        *(("new", n) for n in range(3)),
    ]
    await through(one, asyncio.gather(*sending), 20)


async def test_an_ack_that_is_awaited_comes_after_them_too(roomy):
    one, store = roomy
    ada = await silent(one, store)
    asked = asyncio.ensure_future(one.hub.emit_with_ack(Target.user("ada"), Message("new")))
    await settle()
    assert {m["topic"] for m in ada.heard()} == {"old"}
    await one.advance(5.0)

    assert ada.heard()[-1]["topic"] == "new"
    await through(one, asked, 10)


async def test_others_do_not_wait(roomy):
    one, store = roomy
    ada = await silent(one, store)
    bob = await one.connect("bob")
    ada.heard()
    sending = asyncio.ensure_future(one.hub.send_to_users(["ada", "bob"], Message("new")))
    await one.hub.send_to_conn(ada.id, "direct")
    await settle()

    assert [m["topic"] for m in bob.heard()] == ["new"]
    assert [m["topic"] for m in ada.heard()] == ["direct"]
    await one.advance(5.0)
    assert (await sending).success == 2


async def test_the_time_to_live_runs_while_it_waits(roomy):
    one, store = roomy
    await silent(one, store)
    late = []
    one.hub.on_timeout(late.append)
    sending = asyncio.ensure_future(
        one.hub.send_to_user("ada", Message("new"), SendOptions(ttl=2.0))
    )
    await one.advance(5.0)
    report = await sending

    assert status(report) == ["failed"]
    assert [f.reason for f in late if f.message.topic == "new"] == [FailureReason.TIMEOUT]


async def test_what_is_left_of_the_time_to_live_counts_when_it_goes_out(roomy):
    one, store = roomy
    ada = await silent(one, store)
    options = SendOptions(require_ack=True, ack_timeout=60, ttl=8.0)
    sending = asyncio.ensure_future(one.hub.send_to_user("ada", Message("new"), options))
    await one.advance(5.0)
    assert ada.heard()[-1]["topic"] == "new"
    await one.advance(2.9)
    assert not sending.done()
    await one.advance(0.2)

    assert sending.done()
    await sending


async def test_what_does_not_fit_in_the_line_is_dropped_or_stored(roomy, monkeypatch):
    one, store = roomy
    ada = await silent(one, store)
    monkeypatch.setattr(replay, "MAX_WAITING", 0)
    full = []
    one.hub.on_queue_full(full.append)

    dropped = await one.hub.send_to_user("ada", Message("new"))
    asked = await one.hub.emit_with_ack(Target.user("ada"), Message("new"))
    acked = await one.hub.send_to_user("ada", Message("new"), SendOptions(require_ack=True))
    stored = await one.hub.send_to_user("ada", Message("kept"), STORE)

    assert (asked.expected, asked.received, len(asked.errors)) == (1, 0, 1)
    assert asked.silent == acked.silent == stored.silent == (Acker("ada", None),)
    assert dropped.silent == ()
    assert status(dropped) == ["dropped"]
    assert isinstance(dropped.reports[0].error, QueueFull)
    assert [failure.recipient for failure in full] == ["ada", "ada", "ada"]
    assert one.hub.stats().drops == 3
    assert "new" not in {message["topic"] for message in ada.heard()}
    assert status(stored) == ["stored"]
    await one.advance(10.0)
    assert ada.heard()[-1]["topic"] == "kept"


async def test_a_handler_may_send_to_the_user_whose_replay_it_hears_of(roomy):
    """It waits in line for the replay, which must not wait for it."""
    one, store = roomy

    async def again(failure):
        if failure.message.topic == "old":
            await one.hub.send_to_user("ada", Message("sorry"))

    one.hub.on_timeout(again)
    ada = await silent(one, store, 100)
    await one.advance(30.0)

    topics = [message["topic"] for message in ada.heard()]
    assert topics.count("old") == 100
    assert topics.count("sorry") == 100
    assert "sorry" not in topics[:100]


async def test_an_away_user_s_error_is_not_kept(one):
    report = await one.hub.send_to_user("ada", NEWS, SendOptions())

    assert isinstance(report.reports[0].error, UserOffline)
    assert report.reports[0].status is DeliveryStatus.FAILED


async def test_a_small_queue_is_no_reason_to_lose_anything(make_node):
    store = Engine(MemoryOffline())
    one = await make_node(offline=store)
    ada = await one.connect("ada", queue=QueueConfig(size=1))
    ada.link.stalled = True
    await one.hub.send_to_user("ada", NEWS)

    assert status(await one.hub.send_to_user("ada", NEWS, STORE)) == ["stored"]
