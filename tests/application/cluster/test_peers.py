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
async def one(world):
    return await world.start("n1")


@pytest.fixture
async def two(world, one):
    return await world.start("n2")


# --- telling


async def test_a_cast_to_all_reaches_the_others_and_not_oneself(one, two):
    await one.notify_all(raw("say", {"a": 1}), b"x")
    await settle()

    assert two.heard == [({"a": 1}, b"x")]
    assert one.heard == []


async def test_a_cast_to_a_room_reaches_who_hears_it(one, two):
    await one.notify_room("lab", raw("say", {}), b"1")
    await two.hear_room("lab")
    await one.notify_room("lab", raw("say", {}), b"2")
    await settle()
    two.leave_room("lab")
    await one.notify_room("lab", raw("say", {}), b"3")
    await settle()

    assert [payload for _, payload in two.heard] == [b"2"]


async def test_a_cast_to_a_node_reaches_that_one(world, one, two):
    three = await world.start("n3")

    await one.notify_node("n2", raw("say", {}), b"x")
    await settle()

    assert len(two.heard) == 1
    assert three.heard == []


async def test_casts_of_one_node_arrive_in_order(one, two):
    await two.hear_room("lab")
    for number in range(50):
        await one.notify_room("lab", raw("say", {"n": number}))
    await settle()

    assert [header["n"] for header, _ in two.heard] == list(range(50))


async def test_a_cast_is_not_lost_while_this_node_begins_to_hear_the_room(world, one, two):
    """A bus that counts must not take another's subscription for our own."""
    await two.hear_room("lab")
    joining = asyncio.create_task(one.hear_room("lab"))
    await asyncio.sleep(0)

    await one.notify_room("lab", raw("say", {}), b"x")
    await joining
    await settle()

    assert two.heard == [({}, b"x")]


async def test_traffic_on_the_bus_is_counted(world, one, two):
    await one.notify_all(raw("say", {}))
    await settle()

    assert world.metrics.of("published") == [(1,)]
    assert (1,) in world.metrics.of("consumed")


async def test_nothing_is_packed_when_nobody_listens():
    bus = MemoryPubSub()
    await bus.open()
    world = World(bus)
    one = await world.start("n1")
    await one.hear_room("lab")

    await one.notify_room("lab", raw("say", {"not": object()}))
    await one.notify_all(raw("say", {"not": object()}))

    assert world.metrics.of("published") == []
    await world.close()


async def test_a_bus_that_is_away_costs_a_cast_to_many_a_count():
    world = World(Bus())
    await world.bus.open()
    one = await world.start("n1")
    world.bus.away = True

    for _ in range(3):
        await one.notify_all(raw("say", {}))
        await one.notify_room("lab", raw("say", {}))

    assert one.stats.incidents[Incident.UNSENT] == 6
    assert one.logger.of("warning") == ["bus_away"], "once per absence"
    world.bus.away = False
    await one.notify_all(raw("say", {}))
    world.bus.away = True
    await one.notify_all(raw("say", {}))
    assert one.logger.of("warning") == ["bus_away", "bus_away"]
    await world.close()


async def test_a_bus_that_is_away_is_told_to_who_names_a_node():
    world = World(Bus())
    await world.bus.open()
    one = await world.start("n1")
    world.bus.away = True

    with pytest.raises(Unavailable):
        await one.notify_node("n2", raw("say", {}))
    with pytest.raises(Unavailable):
        await one.request("n2", raw("say", {}))
    await world.close()


# --- asking


async def test_a_question_has_an_answer(one, two):
    async def answer(args, payload):
        return {"args": args, "payload": payload.decode()}

    two.on_request(raw_kind("ask"), answer)

    assert await one.request("n2", raw("ask", {"n": [1]}), b"x") == {
        "args": {"n": [1]},
        "payload": "x",
    }


async def test_questions_do_not_wait_for_each_other(one, two):
    gate = asyncio.Event()

    async def answer(args, _):
        if args["n"] == 1:
            await gate.wait()
        return args["n"]

    two.on_request(raw_kind("ask"), answer)
    slow = asyncio.create_task(one.request("n2", raw("ask", {"n": 1})))

    assert await one.request("n2", raw("ask", {"n": 2})) == 2
    gate.set()
    assert await slow == 1


@pytest.mark.parametrize(
    "error", [Forbidden("no"), RateLimited(2.5, "slow"), Unavailable("away")], ids=repr
)
async def test_a_refusal_comes_back_as_what_it_was(one, two, error):
    async def answer(args, _):
        raise error

    two.on_request(raw_kind("ask"), answer)

    with pytest.raises(type(error), match=str(error)) as caught:
        await one.request("n2", raw("ask", {}))
    assert caught.value.details() == error.details()


@pytest.mark.parametrize("error", [RuntimeError("password: x"), Misuse("password: x")], ids=repr)
async def test_what_fails_over_there_stays_over_there(one, two, error):
    """Its text is for that node's log."""

    async def answer(args, _):
        raise error

    two.on_request(raw_kind("ask"), answer)

    with pytest.raises(Unavailable) as caught:
        await one.request("n2", raw("ask", {}))
    assert "password" not in str(caught.value)
    assert two.logger.of("error") == ["answer_failed"]


async def test_a_node_that_does_not_answer_in_time_is_silent(world, one, two):
    async def answer(args, _):
        await asyncio.Event().wait()

    two.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(one.request("n2", raw("ask", {}), timeout=3.0))
    await world.clock.advance(2.9)
    assert not asked.done()

    await world.clock.advance(0.1)

    with pytest.raises(NodeTimeout):
        await asked


async def test_a_node_that_is_not_there_is_silent(world, one):
    asked = asyncio.create_task(one.request("n9", raw("ask", {})))
    await world.clock.advance(CALL_TIMEOUT)

    with pytest.raises(NodeTimeout):
        await asked


async def test_an_answer_that_comes_too_late_is_nobodys(world, one, two):
    gate = asyncio.Event()

    async def answer(args, _):
        await gate.wait()
        return 1

    two.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(one.request("n2", raw("ask", {})))
    await world.clock.advance(CALL_TIMEOUT)
    gate.set()
    await settle()

    with pytest.raises(NodeTimeout):
        await asked
    assert one.stats.incidents[Incident.BAD_PACKETS] == 0


async def test_only_the_node_that_was_asked_answers(world, one, two):
    async def answer(args, _):
        await asyncio.Event().wait()

    two.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(one.request("n2", raw("ask", {})))
    await settle()
    (number,) = one._questions

    forged = Packet("n3", "reply", {"id": number, "result": "forged"})
    await world.bus.publish("p:node:n1", forged.pack())
    await settle()

    assert not asked.done()
    await world.clock.advance(CALL_TIMEOUT)
    with pytest.raises(NodeTimeout):
        await asked


async def test_an_answer_to_the_node_that_had_the_name_before_is_not_ours(world, one):
    """Questions are not numbered from one at every start."""
    numbers = {next((await world.start(f"m{n}"))._numbers) for n in range(5)}

    assert len(numbers) == 5


async def test_who_gives_up_asking_leaves_nothing_behind(world, one, two):
    async def answer(args, _):
        await asyncio.Event().wait()

    two.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(one.request("n2", raw("ask", {})))
    await settle()
    assert len(one._deadlines) == 1

    asked.cancel()
    await settle()

    assert one._questions == {}
    assert len(one._deadlines) == 0


async def test_stopping_ends_what_is_asked(one, two):
    async def answer(args, _):
        await asyncio.Event().wait()

    two.on_request(raw_kind("ask"), answer)
    asked = asyncio.create_task(one.request("n2", raw("ask", {})))
    await settle()

    await one.stop()

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
async def test_a_bad_packet_is_dropped_and_counted_and_never_raised(world, one, data):
    async def answer(args, _):
        return 1

    def misreads(header, payload):
        return header["missing"]

    def raises(header, payload):
        raise BadPacket("no")

    one.on_request(raw_kind("ask"), answer)
    one.on_event(raw_kind("misreads"), misreads)
    one.on_event(raw_kind("raises"), raises)

    await world.bus.publish("p:node:n1", data)
    await settle()

    assert one.stats.incidents[Incident.BAD_PACKETS] == 1
    assert len(one.logger.entries) == 1


@pytest.mark.parametrize(
    "answer",
    [{"error": 5}, {"error": {}}, {"error": {"code": [], "text": "x"}}],
    ids=repr,
)
async def test_an_answer_that_can_not_be_read_is_no_answer(world, one, answer):
    asked = asyncio.create_task(one.request("n2", raw("ask", {})))
    await settle()
    (number,) = one._questions

    await world.bus.publish("p:node:n1", packet("reply", {"id": number, **answer}, "n2"))
    await world.clock.advance(CALL_TIMEOUT)

    with pytest.raises(NodeTimeout):
        await asked
    assert one.stats.incidents[Incident.BAD_PACKETS] == 1


async def test_an_unknown_code_is_a_plain_refusal(world, one):
    asked = asyncio.create_task(one.request("n2", raw("ask", {})))
    await settle()
    (number,) = one._questions

    error = {"code": "from_the_future", "text": "no"}
    await world.bus.publish("p:node:n1", packet("reply", {"id": number, "error": error}, "n2"))

    with pytest.raises(Refused, match="no"):
        await asked


async def test_headers_travel_as_json(world, one, two):
    await one.notify_all(raw("say", {"text": 'ü "😀"', "n": None}))
    await settle()

    assert two.heard == [({"text": 'ü "😀"', "n": None}, b"")]
    assert json


# --- leases


async def test_nodes_know_who_is_alive(one, two):
    assert await one.is_alive("n2")
    assert not await one.is_alive("n9")
    assert await one.others() == ["n2"]


async def test_a_lease_is_renewed_in_time(world, one, two):
    await world.clock.advance(100.0)

    assert await one.is_alive("n2")


async def test_a_node_that_stops_is_out_at_once(one, two):
    await two.stop()

    assert await one.others() == []


async def test_a_node_that_has_stopped_takes_no_lease_by_looking(one, two):
    await two.stop()

    assert await two.others() == []
    assert not await two.is_alive("n1")
    assert await one.others() == []


async def test_two_renewals_may_fail(world, one, two):
    await world.clock.advance(3.0)
    world.state.away = True
    await world.clock.advance(6.9)
    world.state.away = False
    await world.clock.advance(0.2)

    assert await one.is_alive("n2")
    assert set(one.logger.of("warning")) == {"cluster_task_failed"}


async def test_a_state_that_does_not_answer_collects_no_tasks(world, one):
    world.state.before.add("renew")

    await world.clock.advance(100.0)

    assert world.state.calls.count("renew") == 2
    world.state.go_on()


async def test_who_may_have_lost_the_lease_is_told_when_it_is_renewed(world, one):
    lapses = []

    async def lapsed():
        lapses.append(world.clock.now())

    one.on_lapse(lapsed)
    await world.clock.advance(50.0)
    assert lapses == []

    world.state.away = True
    await world.clock.advance(11.0)
    assert lapses == []
    world.state.away = False
    await world.clock.advance(10.0)

    assert len(lapses) == 1


async def test_a_renewal_that_was_long_on_its_way_may_have_come_too_late(world, one):
    """The state may have taken the node for dead before it had the question."""
    lapses = []

    async def lapsed():
        lapses.append(world.clock.now())

    one.on_lapse(lapsed)
    world.state.before.add("renew")
    await world.clock.advance(11.0)
    assert lapses == []
    world.state.go_on()
    await settle()

    assert len(lapses) == 1


async def test_a_state_that_is_away_does_not_keep_a_node_from_stopping(world, one):
    world.state.away = True

    await one.stop()

    assert one.logger.of("warning") == ["release_failed"]


async def test_a_stopped_node_leaves_nothing_on_the_bus(world, one):
    await one.hear_room("lab")
    one.leave_room("lab")
    await one.hear_room("hall")

    await one.stop()

    count = getattr(world.bus, "listeners", None) or world.bus.listeners_of
    assert [count(f"p:{name}") for name in ("all", "node:n1", "room:lab", "room:hall")] == [0] * 4
    assert world.clock.timers == set()


async def test_a_node_can_start_again(world, one, two):
    await one.stop()
    await one.start()

    await two.notify_all(raw("say", {}), b"x")
    await settle()

    assert one.heard == [({}, b"x")]
