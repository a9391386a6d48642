"""A loop that stood still: what is noticed of it, and what it costs nobody."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.concurrency.stalls import CHANCE, LATE, QUIET, TICK, StallLog, Stalls
from eyewall.application.concurrency.timers import TimerQueue
from eyewall.application.connections.stats import Stats
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.identity import ConnMeta
from eyewall.domain.report import AckOptions, Target
from eyewall.domain.room import RoomOptions
from tests.application.fakes import (
    FakeClock,
    FakeLink,
    Harness,
    RecordingLogger,
    RecordingMetrics,
    raw,
    raw_kind,
    settle,
)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def stalls(clock):
    stalls = Stalls(clock)
    stalls.start()
    return stalls


@pytest.fixture
def lost(stalls):
    """The seconds of each stall that was told of."""
    lost: list[float] = []
    stalls.on_stall(lost.append)
    return lost


def stand_still(clock, seconds):
    """Time passes and nothing runs; then everything that is due does."""
    clock.stand_still(seconds)
    clock.pass_time(0)


def lines(logger):
    """The fields of each line about stalls."""
    return [fields for _, event, fields in logger.entries if event == "loop_stalled"]


# --- noticing


def test_a_stall_is_told_once_with_the_time_that_it_took(clock, lost):
    clock.pass_time(10)
    stand_still(clock, 45)
    clock.pass_time(10)

    [seconds] = lost
    assert 45 - TICK <= seconds <= 45


def test_a_loop_that_is_a_little_late_has_not_stood_still(clock, lost):
    for _ in range(20):
        clock.stand_still(LATE)
        clock.pass_time(TICK)

    assert lost == []


def test_whoever_looks_first_notices(clock, stalls, lost):
    clock.stand_still(45)
    stalls.detect()
    stalls.detect()
    assert len(lost) == 1

    clock.pass_time(5)
    assert len(lost) == 1


def test_the_lag_is_told_about_once_a_second(clock, stalls):
    lags: list[float] = []
    stalls.on_lag(lags.append)
    clock.pass_time(10)
    assert 8 <= len(lags) <= 11
    assert set(lags) == {0.0}

    stand_still(clock, 45)
    clock.pass_time(2)

    assert 45 - TICK <= max(lags) <= 45


def test_time_awake_leaves_stalls_out_and_never_goes_back(clock, stalls):
    seen = [stalls.awake()]
    for _ in range(5):
        clock.stand_still(30)
        seen.append(stalls.awake())
        clock.pass_time(3)
        seen.append(stalls.awake())

    assert seen == sorted(seen)
    assert 15 <= seen[-1] - seen[0] <= 15 + 5 * (TICK + LATE)


def test_a_time_of_day_that_jumps_is_noticed(clock, stalls):
    jumps: list[bool] = []
    stalls.on_jump(lambda: jumps.append(True))
    clock.pass_time(10)
    stand_still(clock, 45)
    assert jumps == []

    clock.set_wall(clock.wall() + timedelta(hours=1))
    clock.pass_time(10)
    assert len(jumps) == 1


def test_nothing_is_noticed_before_the_start_and_after_the_end(clock):
    stalls, lost = Stalls(clock), []
    stalls.on_stall(lost.append)
    clock.stand_still(45)
    stalls.detect()
    stalls.start()
    stalls.start()
    assert len(clock.timers) == 1
    stalls.stop()
    assert not clock.timers
    clock.stand_still(45)
    stalls.detect()

    assert (lost, stalls.is_recent) == ([], False)


def test_the_log_has_the_first_stall_at_once_and_the_others_together(clock, stalls):
    logger, metrics = RecordingLogger(), RecordingMetrics()
    stats = Stats(clock, metrics, logger)
    log = StallLog(clock, logger, stats.happened)
    stalls.on_stall(log.stalled)
    for _ in range(5):
        stand_still(clock, 1)
        clock.pass_time(0.5)

    assert [fields["stalls"] for fields in lines(logger)] == [1]
    clock.pass_time(QUIET)
    first, others = lines(logger)
    assert 1 - TICK <= first["seconds"] <= 1
    assert others["stalls"] == 4
    assert stats.snapshot(connections=0, users=0, rooms=0).loop_stalls == 5

    stand_still(clock, 1)
    log.close()
    assert len(lines(logger)) == 3


# --- deadlines


def test_a_deadline_gets_the_time_back(clock, stalls):
    ran: list[float] = []
    TimerQueue(clock, stalls).at(clock.now() + 5, lambda: ran.append(clock.now()))
    begin = clock.now()
    clock.pass_time(1)
    stand_still(clock, 60)
    clock.pass_time(10)

    [when] = ran
    assert 65 - TICK <= when - begin <= 65 + TICK


def test_what_was_due_at_once_has_a_chance_and_only_one(clock, stalls):
    ran: list[float] = []
    TimerQueue(clock, stalls).at(clock.now() + 0.1, lambda: ran.append(clock.now()))
    stand_still(clock, 60)
    assert ran == []
    clock.pass_time(CHANCE / 4)
    assert ran == []
    for _ in range(10):
        stand_still(clock, 60)
        clock.pass_time(CHANCE / 4)

    assert len(ran) == 1


def test_deadlines_keep_their_order(clock, stalls):
    ran: list[int] = []
    deadlines = TimerQueue(clock, stalls)
    for n in range(20):
        deadlines.at(clock.now() + n, lambda n=n: ran.append(n))
    clock.pass_time(2.5)
    stand_still(clock, 7)
    clock.pass_time(30)

    assert ran == list(range(20))
    assert len(deadlines) == 0


# --- what clients have to do in time


class Waiting(FakeLink):
    """What the peer says waits in the socket until somebody looks."""

    unread: tuple = ()

    def read_pending(self):
        unread, self.unread = self.unread, ()
        for payload in unread:
            self.say(payload)


@pytest.fixture
async def node(clock):
    stalls = Stalls(clock)
    config = {"client_commands": True, "presence_grace": 5.0, "session_ttl": 120.0}
    async with Harness(clock=clock, stalls=stalls, **config) as node:
        stalls.start()
        yield node
        stalls.stop()


async def later(clock, seconds):
    """Time passes and nothing runs."""
    clock.stand_still(seconds)
    await clock.advance(0)


async def emitted(node, timeout=5.0):
    client = await node.connect(user="ada", link=Waiting(node.clock, node.transport_events))
    asked = asyncio.create_task(
        node.hub.emit_with_ack(Target.user("ada"), Message("news"), AckOptions(timeout=timeout))
    )
    await settle()
    [message] = client.heard()
    ack = b'{"topic": "news", "event": "ack", "ref": "%s"}' % message["id"].encode()
    return client, asked, ack


async def test_an_ack_that_has_come_counts_though_nobody_has_read_it(node, clock):
    client, asked, ack = await emitted(node)
    client.link.unread = (ack,)
    await clock.advance(6)

    assert (await asked).received == 1


async def test_an_ack_that_was_not_read_during_a_stall_counts(node, clock):
    client, asked, ack = await emitted(node)
    await later(clock, 60)
    client.link.unread = (ack,)
    await clock.advance(6)

    assert (await asked).received == 1


async def test_the_time_for_an_ack_does_not_run_while_the_loop_stands_still(node, clock):
    _, asked, _ = await emitted(node)
    await clock.advance(1)
    await later(clock, 60)
    await clock.advance(3)
    assert not asked.done()
    await clock.advance(2)

    assert (await asked).timed_out


async def test_a_session_is_kept_for_so_much_longer(node, clock):
    client = await node.connect(user="ada", session=True)
    await client.vanish()
    assert len(node.parts.sessions) == 1
    await later(clock, 500)
    await clock.advance(100)
    assert len(node.parts.sessions) == 1
    await clock.advance(30)

    assert len(node.parts.sessions) == 0


async def test_who_types_on_during_a_stall_has_not_stopped(node, clock):
    bob = await node.connect(user="bob")
    await node.hub.join("lab", bob.id)
    await node.hub.set_typing("ada", "lab", ttl=3.0)
    await later(clock, 10)
    await node.hub.set_typing("ada", "lab", ttl=3.0)  # it is read now
    await clock.advance(2)
    told = [m["data"]["typing"] for m in bob.heard() if m["event"] == "typing"]
    assert False not in told

    await clock.advance(5)
    assert [m["data"]["typing"] for m in bob.heard() if m["event"] == "typing"] == [False]


async def test_typing_ends_though_the_loop_stands_still_again_and_again(node, clock):
    bob = await node.connect(user="bob")
    await node.hub.join("lab", bob.id)
    await node.hub.set_typing("ada", "lab", ttl=3.0)
    for _ in range(5):
        await later(clock, 10)
        await clock.advance(CHANCE / 4)

    assert [m["data"]["typing"] for m in bob.heard() if m["event"] == "typing"] == [True, False]


async def test_who_could_not_come_back_is_not_missed(node, clock):
    await node.hub.create_room("lab", RoomOptions(announce=True))
    bob, ada = await node.connect(user="bob"), await node.connect(user="ada")
    await node.hub.join("lab", bob.id)
    await node.hub.join("lab", ada.id)
    bob.heard()
    await ada.vanish()
    await clock.advance(1)
    await later(clock, 60)
    await clock.advance(3)
    assert bob.heard() == []
    await clock.advance(3)

    assert [m["event"] for m in bob.heard()] == ["leave"]


# --- tokens


class Doorkeeper:
    """A token is how many seconds it is good for."""

    def __init__(self, clock):
        self.clock = clock

    def authenticate(self, handshake):
        seconds = float(handshake.query.get("token"))
        return ConnMeta(user_id="ada", expires_at=self.clock.wall() + timedelta(seconds=seconds))


@pytest.fixture
async def guarded(clock):
    stalls = Stalls(clock)
    async with Harness(clock=clock, stalls=stalls, authenticator=Doorkeeper(clock)) as node:
        stalls.start()

        @node.on("work")
        async def work(_ctx, _msg):
            return {"done": True}

        yield node
        stalls.stop()


async def with_token(guarded, seconds):
    end = guarded.clock.wall() + timedelta(seconds=seconds)
    return await guarded.connect(user="ada", expires_at=end)


def refresh(ref):
    return {"id": ref, "topic": "system:refresh", "ack": True, "data": {"token": "60"}}


def ask(ref):
    return {"id": ref, "topic": "work", "ack": True}


async def test_a_refresh_that_has_come_during_a_stall_is_taken(guarded, clock):
    ada = await with_token(guarded, 10)
    await later(clock, 60)
    assert ada.closed is None
    [ack] = await ada.ask(refresh("1"))
    assert ack["data"]["status"] == "ok"
    await clock.advance(5)

    [ack] = await ada.ask(ask("2"))
    assert ack["data"]["done"]
    await clock.advance(60)
    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_without_a_new_token_nothing_is_done_and_the_end_comes(guarded, clock):
    ada = await with_token(guarded, 10)
    await later(clock, 60)
    [nack] = await ada.ask(ask("1"))
    assert nack["data"]["code"] == "unauthorized"
    await clock.advance(CHANCE)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_stalls_that_come_again_and_again_keep_no_expired_token(guarded, clock):
    ada = await with_token(guarded, 10)
    for _ in range(3):
        await later(clock, 60)
        await clock.advance(CHANCE / 4)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_a_token_that_is_good_after_the_stall_is_good(guarded, clock):
    ada = await with_token(guarded, 100)
    await later(clock, 60)
    [ack] = await ada.ask(ask("1"))
    assert ack["data"]["done"]
    await clock.advance(39)
    assert ada.closed is None
    await clock.advance(2)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_a_token_ends_by_the_time_of_day_though_the_clock_did_not_go_on(guarded, clock):
    ada = await with_token(guarded, 1000)
    clock.set_wall(clock.wall() + timedelta(hours=1))
    await clock.advance(TICK + CHANCE)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_a_time_of_day_that_is_set_back_lets_a_token_live(guarded, clock):
    ada = await with_token(guarded, 100)
    clock.set_wall(clock.wall() - timedelta(seconds=50))
    await clock.advance(120)
    assert ada.closed is None
    await clock.advance(40)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


# --- other nodes


async def test_the_lease_is_renewed_before_anything_is_decided(clock):
    stalls = Stalls(clock)
    state = MemoryState(clock=stalls.awake)
    async with Harness(clock=clock, stalls=stalls, state=state, lease=10.0) as node:
        stalls.start()
        ada = await node.connect(user="ada")
        await node.hub.join("lab", ada.id)
        clock.stand_still(45)
        # The handler that has blocked goes on, before any timer or task of the node's.
        assert [m.user_id for m in await node.hub.members("lab")] == ["ada"]
        assert (await node.hub.presence("ada")).online
        await clock.advance(1)
        assert [m.user_id for m in await node.hub.members("lab")] == ["ada"]
        stalls.stop()


async def test_what_others_took_back_meanwhile_is_put_back_at_once(clock):
    stalls, state = Stalls(clock), MemoryState(clock=clock.now)
    async with (
        Harness("n1", clock=clock, stalls=stalls, state=state, lease=10.0) as one,
        Harness("n2", clock=clock, state=state, pubsub=one.bus, lease=10.0) as two,
    ):
        stalls.start()
        ada = await one.connect(user="ada")
        await one.hub.join("lab", ada.id)
        clock.stand_still(45)
        assert await state.rooms() == []  # whoever looks first finds the lease gone
        await clock.advance(0)

        assert [m.user_id for m in await two.hub.members("lab")] == ["ada"]
        stalls.stop()


async def test_a_question_to_another_node_has_time_for_its_answer(clock):
    stalls = Stalls(clock)
    async with (
        Harness("n1", clock=clock, stalls=stalls) as one,
        Harness("n2", clock=clock, state=one.state, pubsub=one.bus) as two,
    ):
        stalls.start()
        gate = asyncio.Event()

        async def answer(_args, _payload):
            await gate.wait()
            return "late"

        two.parts.cluster.on_request(raw_kind("ask"), answer)
        asked = asyncio.create_task(one.parts.cluster.request("n2", raw("ask", {})))
        await settle()
        await later(clock, 60)
        gate.set()
        await settle()

        assert await asked == "late"
        stalls.stop()
