"""The other nodes: casts, questions, leases, and a bus that is not trusted."""

import asyncio
import json

import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.cluster.packet import BadPacket, Packet
from eyewall.application.cluster.peers import CALL_TIMEOUT, Cluster, NodeTimeout
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.connections.stats import Stats
from eyewall.domain.errors import Forbidden, Misuse, RateLimited, Refused, Unavailable
from eyewall.domain.report import Incident
from tests.application.engines import Bus, Engine
from tests.application.fakes import (
    FakeClock,
    RecordingLogger,
    RecordingMetrics,
    raw,
    raw_kind,
    settle,
)


class World:
    """Clusters on one bus and state."""

    def __init__(self, bus):
        self.clock = FakeClock()
        self.bus = bus
        self.state = Engine(MemoryState(clock=self.clock.now))
        self.clusters = []
        self.metrics = RecordingMetrics()

    async def start(self, node):
        logger = RecordingLogger()
        stats = Stats(self.clock, self.metrics, logger)
        cluster = Cluster(
            node=node,
            prefix="p",
            bus=self.bus,
            state=self.state,
            clock=self.clock,
            logger=logger,
            metrics=stats.metrics,
            happened=stats.happened,
            stalls=Stalls(self.clock),
            lease=10.0,
            max_payload=1000,
        )
        cluster.logger = logger
        cluster.stats = stats
        cluster.heard = []
        cluster.on_event(
            raw_kind("say"), lambda header, payload: cluster.heard.append((header, payload))
        )
        await cluster.start()
        self.clusters.append(cluster)
        return cluster

    async def close(self):
        for cluster in self.clusters:
            await cluster.stop()


@pytest.fixture(params=[Bus, MemoryPubSub], ids=["plain", "counting"])
async def world(request):
    """On a bus that counts its listeners, and on one that does not."""
    bus = request.param()
    await bus.open()
    world = World(bus)
    yield world
    await world.close()
    await bus.close()


@pytest.fixture
async def first(world):
    return await world.start("n1")


@pytest.fixture
async def second(world, first):
    return await world.start("n2")


# --- telling


async def test_a_cast_to_all_reaches_the_others_and_not_oneself(first, second):
    await first.notify_all(raw("say", {"a": 1}), b"x")
    await settle()

    assert second.heard == [({"a": 1}, b"x")]
    assert first.heard == []


async def test_a_cast_to_a_room_reaches_who_hears_it(first, second):
    await first.notify_room("lab", raw("say", {}), b"1")
    await second.hear_room("lab")
    await first.notify_room("lab", raw("say", {}), b"2")
    await settle()
    second.leave_room("lab")
    await first.notify_room("lab", raw("say", {}), b"3")
    await settle()

    assert [payload for _, payload in second.heard] == [b"2"]


async def test_a_cast_to_a_node_reaches_that_one(world, first, second):
    three = await world.start("n3")

    await first.notify_node("n2", raw("say", {}), b"x")
    await settle()

    assert len(second.heard) == 1
    assert three.heard == []


async def test_casts_of_one_node_arrive_in_order(first, second):
    await second.hear_room("lab")
    for number in range(50):
        await first.notify_room("lab", raw("say", {"n": number}))
    await settle()

    assert [header["n"] for header, _ in second.heard] == list(range(50))


async def test_a_cast_is_not_lost_while_this_node_begins_to_hear_the_room(world, first, second):
    """A bus that counts must not take another's subscription for our own."""
    await second.hear_room("lab")
    joining = asyncio.create_task(first.hear_room("lab"))
    await asyncio.sleep(0)

    await first.notify_room("lab", raw("say", {}), b"x")
    await joining
    await settle()

    assert second.heard == [({}, b"x")]


async def test_traffic_on_the_bus_is_counted(world, first, second):
    await first.notify_all(raw("say", {}))
    await settle()

    assert world.metrics.of("published") == [(1,)]
    assert (1,) in world.metrics.of("consumed")


async def test_nothing_is_packed_when_nobody_listens():
    bus = MemoryPubSub()
    await bus.open()
    world = World(bus)
    first = await world.start("n1")
    await first.hear_room("lab")

    await first.notify_room("lab", raw("say", {"not": object()}))
    await first.notify_all(raw("say", {"not": object()}))

    assert world.metrics.of("published") == []
    await world.close()


async def test_a_bus_that_is_away_costs_a_cast_to_many_a_count():
    world = World(Bus())
    await world.bus.open()
    first = await world.start("n1")
    world.bus.away = True

    for _ in range(3):
        await first.notify_all(raw("say", {}))
        await first.notify_room("lab", raw("say", {}))

    assert first.stats.incidents[Incident.UNSENT] == 6
    assert first.logger.of("warning") == ["bus_away"], "once per absence"
    world.bus.away = False
    await first.notify_all(raw("say", {}))
    world.bus.away = True
    await first.notify_all(raw("say", {}))
    assert first.logger.of("warning") == ["bus_away", "bus_away"]
    await world.close()


async def test_a_bus_that_is_away_is_told_to_who_names_a_node():
    world = World(Bus())
    await world.bus.open()
    first = await world.start("n1")
    world.bus.away = True

    with pytest.raises(Unavailable):
        await first.notify_node("n2", raw("say", {}))
    with pytest.raises(Unavailable):
        await first.request("n2", raw("say", {}))
    await world.close()


# --- asking


async def test_a_question_has_an_answer(first, second):
    async def answer(args, payload):
        return {"args": args, "payload": payload.decode()}

    second.on_request(raw_kind("ask"), answer)

    assert await first.request("n2", raw("ask", {"n": [1]}), b"x") == {
        "args": {"n": [1]},
        "payload": "x",
    }


async def test_questions_do_not_wait_for_each_other(first, second):
    gate = asyncio.Event()

    async def answer(args, _):
        if args["n"] == 1:
            await gate.wait()
        return args["n"]

    second.on_request(raw_kind("ask"), answer)
    slow = asyncio.create_task(first.request("n2", raw("ask", {"n": 1})))

    assert await first.request("n2", raw("ask", {"n": 2})) == 2
    gate.set()
    assert await slow == 1


@pytest.mark.parametrize(
    "error", [Forbidden("no"), RateLimited(2.5, "slow"), Unavailable("away")], ids=repr
)
async def test_a_refusal_comes_back_as_what_it_was(first, second, error):
    async def answer(args, _):
        raise error

    second.on_request(raw_kind("ask"), answer)

    with pytest.raises(type(error), match=str(error)) as caught:
        await first.request("n2", raw("ask", {}))
    assert caught.value.details() == error.details()


@pytest.mark.parametrize("error", [RuntimeError("password: x"), Misuse("password: x")], ids=repr)
async def test_what_fails_over_there_stays_over_there(first, second, error):
    """Its text is for that node's log."""

    async def answer(args, _):
        raise error

    second.on_request(raw_kind("ask"), answer)

    with pytest.raises(Unavailable) as caught:
        await first.request("n2", raw("ask", {}))
    assert "password" not in str(caught.value)
    assert second.logger.of("error") == ["answer_failed"]


async def test_a_node_that_does_not_answer_in_time_is_silent(world, first, second):
    async def answer(args, _):
        await asyncio.Event().wait()

    second.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(first.request("n2", raw("ask", {}), timeout=3.0))
    await world.clock.advance(2.9)
    assert not asked.done()

    await world.clock.advance(0.1)

    with pytest.raises(NodeTimeout):
        await asked


async def test_a_node_that_is_not_there_is_silent(world, first):
    asked = asyncio.create_task(first.request("n9", raw("ask", {})))
    await world.clock.advance(CALL_TIMEOUT)

    with pytest.raises(NodeTimeout):
        await asked


async def test_an_answer_that_comes_too_late_is_nobodys(world, first, second):
    gate = asyncio.Event()

    async def answer(args, _):
        await gate.wait()
        return 1

    second.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(first.request("n2", raw("ask", {})))
    await world.clock.advance(CALL_TIMEOUT)
    gate.set()
    await settle()

    with pytest.raises(NodeTimeout):
        await asked
    assert first.stats.incidents[Incident.BAD_PACKETS] == 0


async def test_only_the_node_that_was_asked_answers(world, first, second):
    async def answer(args, _):
        await asyncio.Event().wait()

    second.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(first.request("n2", raw("ask", {})))
    await settle()
    (number,) = first._requests

    forged = Packet("n3", "reply", {"id": number, "result": "forged"})
    await world.bus.publish("p:node:n1", forged.pack())
    await settle()

    assert not asked.done()
    await world.clock.advance(CALL_TIMEOUT)
    with pytest.raises(NodeTimeout):
        await asked


async def test_an_answer_to_the_node_that_had_the_name_before_is_not_ours(world, first):
    """Questions are not numbered from one at every start."""
    numbers = {next((await world.start(f"m{n}"))._numbers) for n in range(5)}

    assert len(numbers) == 5


async def test_who_gives_up_asking_leaves_nothing_behind(world, first, second):
    async def answer(args, _):
        await asyncio.Event().wait()

    second.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(first.request("n2", raw("ask", {})))
    await settle()
    assert len(first._deadlines) == 1

    asked.cancel()
    await settle()

    assert first._requests == {}
    assert len(first._deadlines) == 0


async def test_stopping_ends_what_is_asked(first, second):
    async def answer(args, _):
        await asyncio.Event().wait()

    second.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(first.request("n2", raw("ask", {})))
    await settle()

    await first.stop()

    with pytest.raises(NodeTimeout):
        await asked


# --- the bus is a trust boundary


def packet(kind="say", header=None, node="evil", payload=b""):
    return Packet(node, kind, {} if header is None else header, payload).pack()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x02" + packet()[1:],
        packet(payload=b"x" * 1001),
        packet("unknown kind"),
        packet("call"),
        packet("call", {"op": "ask"}),
        packet("call", {"op": "ask", "id": 1, "args": []}),
        packet("call", {"op": "other", "id": 1, "args": {}}),
        packet("call", {"op": ["ask"], "id": 1, "args": {}}),
        packet("reply"),
        packet("reply", {"id": [1]}),
        packet("raises"),
        packet("misreads"),
    ],
    ids=lambda data: repr(data)[:60],
)
async def test_a_bad_packet_is_dropped_and_counted_and_never_raised(world, first, data):
    async def answer(args, _):
        return 1

    def misreads(header, payload):
        return header["missing"]

    def raises(header, payload):
        raise BadPacket("no")

    first.on_request(raw_kind("ask"), answer)
    first.on_event(raw_kind("misreads"), misreads)
    first.on_event(raw_kind("raises"), raises)

    await world.bus.publish("p:node:n1", data)
    await settle()

    assert first.stats.incidents[Incident.BAD_PACKETS] == 1
    assert len(first.logger.entries) == 1


@pytest.mark.parametrize(
    "answer",
    [{"error": 5}, {"error": {}}, {"error": {"code": [], "text": "x"}}],
    ids=repr,
)
async def test_an_answer_that_can_not_be_read_is_no_answer(world, first, answer):
    asked = asyncio.create_task(first.request("n2", raw("ask", {})))
    await settle()
    (number,) = first._requests

    await world.bus.publish("p:node:n1", packet("reply", {"id": number, **answer}, "n2"))
    await world.clock.advance(CALL_TIMEOUT)

    with pytest.raises(NodeTimeout):
        await asked
    assert first.stats.incidents[Incident.BAD_PACKETS] == 1


async def test_an_unknown_code_is_a_plain_refusal(world, first):
    asked = asyncio.create_task(first.request("n2", raw("ask", {})))
    await settle()
    (number,) = first._requests

    error = {"code": "from_the_future", "text": "no"}
    await world.bus.publish("p:node:n1", packet("reply", {"id": number, "error": error}, "n2"))

    with pytest.raises(Refused, match="no"):
        await asked


async def test_headers_travel_as_json(world, first, second):
    await first.notify_all(raw("say", {"text": 'ü "😀"', "n": None}))
    await settle()

    assert second.heard == [({"text": 'ü "😀"', "n": None}, b"")]
    assert json


# --- leases


async def test_nodes_know_who_is_alive(first, second):
    assert await first.is_alive("n2")
    assert not await first.is_alive("n9")
    assert await first.others() == ["n2"]


async def test_a_lease_is_renewed_in_time(world, first, second):
    await world.clock.advance(100.0)

    assert await first.is_alive("n2")


async def test_a_node_that_stops_is_out_at_once(first, second):
    await second.stop()

    assert await first.others() == []


async def test_a_node_that_has_stopped_takes_no_lease_by_looking(first, second):
    await second.stop()

    assert await second.others() == []
    assert not await second.is_alive("n1")
    assert await first.others() == []


async def test_two_renewals_may_fail(world, first, second):
    await world.clock.advance(3.0)
    world.state.away = True
    await world.clock.advance(6.9)
    world.state.away = False
    await world.clock.advance(0.2)

    assert await first.is_alive("n2")
    assert set(first.logger.of("warning")) == {"cluster_task_failed"}


async def test_a_state_that_does_not_answer_collects_no_tasks(world, first):
    world.state.before.add("renew")

    await world.clock.advance(100.0)

    assert world.state.calls.count("renew") == 2
    world.state.go_on()


async def test_who_may_have_lost_the_lease_is_told_when_it_is_renewed(world, first):
    lapses = []

    async def lapsed():
        lapses.append(world.clock.now())

    first.on_lapse(lapsed)
    await world.clock.advance(50.0)
    assert lapses == []

    world.state.away = True
    await world.clock.advance(11.0)
    assert lapses == []
    world.state.away = False
    await world.clock.advance(10.0)

    assert len(lapses) == 1


async def test_a_renewal_that_was_long_on_its_way_may_have_come_too_late(world, first):
    """The state may have taken the node for dead before it had the question."""
    lapses = []

    async def lapsed():
        lapses.append(world.clock.now())

    first.on_lapse(lapsed)
    world.state.before.add("renew")
    await world.clock.advance(11.0)
    assert lapses == []
    world.state.go_on()
    await settle()

    assert len(lapses) == 1


async def test_a_state_that_is_away_does_not_keep_a_node_from_stopping(world, first):
    world.state.away = True

    await first.stop()

    assert first.logger.of("warning") == ["release_failed"]


async def test_a_stopped_node_leaves_nothing_on_the_bus(world, first):
    await first.hear_room("lab")
    first.leave_room("lab")
    await first.hear_room("hall")

    await first.stop()

    count = getattr(world.bus, "listeners", None) or world.bus.listeners_of
    assert [count(f"p:{name}") for name in ("all", "node:n1", "room:lab", "room:hall")] == [0] * 4
    assert world.clock.timers == set()


async def test_a_node_can_start_again(world, first, second):
    await first.stop()
    await first.start()

    await second.notify_all(raw("say", {}), b"x")
    await settle()

    assert first.heard == [({}, b"x")]
