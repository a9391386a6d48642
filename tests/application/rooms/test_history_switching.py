"""A room's history is switched on and off by one at a time, in the whole cluster."""

import asyncio
from datetime import timedelta

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.rooms.moderation import CLAIM_LIFETIME
from eyewall.domain.errors import RoomExists, RoomNotFound, Unavailable
from eyewall.domain.room import Room, RoomOptions
from tests.application.engines import Engine
from tests.application.fakes import START, settle

KEPT = RoomOptions(history_size=10)


class Held(MemoryHistory):
    """A history whose removals wait, each until the test lets it go."""

    def __init__(self):
        super().__init__()
        self.held, self.holds = [], False

    async def remove(self, *args):
        if self.holds:
            gate = asyncio.Event()
            self.held.append(gate)
            await gate.wait()
        await super().remove(*args)

    async def let_go(self):
        self.held.pop(0).set()
        await settle()


@pytest.fixture
async def history():
    return Held()


@pytest.fixture
def pair_config(history):
    return {"history": history}


@pytest.fixture(params=["the same node", "another node"])
async def other(request, one, make_node, history):
    """Whoever switches at the same time."""
    return one if request.param == "the same node" else await make_node(history=history)


async def going_on(work):
    task = asyncio.ensure_future(work)
    await settle()
    return task


async def all_done(node, history, *tasks):
    """Let everything end; as soon as the first has, a message is published."""
    published = False
    for _ in range(20):
        if not published and any(task.done() for task in tasks):
            await node.hub.broadcast_room("lab", "said")
            published = True
        if history.held:
            await history.let_go()
        await node.advance(0.2)
    assert all(task.done() for task in tasks)
    assert published


async def kept(node):
    return [m.topic for m in (await node.hub.history("lab")).messages]


async def test_what_was_published_after_the_first_is_kept(one, other, history):
    """Both found a room without a history, and each would begin one."""
    member = await one.connect("ada")
    await one.hub.join("lab", member.id)
    history.holds = True
    tasks = [await going_on(n.hub.update_room("lab", history_size=10)) for n in (one, other)]

    await all_done(one, history, *tasks)

    assert await kept(other) == ["said"]
    assert tasks[0].result().epoch == tasks[1].result().epoch


async def test_creating_it_is_no_different(one, other, history):
    member = await one.connect("ada")
    await one.hub.join("lab", member.id)
    history.holds = True
    tasks = [await going_on(n.hub.create_room("lab", KEPT)) for n in (one, other)]

    await all_done(one, history, *tasks)

    assert await kept(other) == ["said"]


async def test_switching_it_off_deletes_nothing_of_the_history_that_follows(one, other, history):
    await one.hub.create_room("lab", KEPT)
    await one.hub.broadcast_room("lab", "old")
    history.holds = True
    off = await going_on(one.hub.update_room("lab", history_size=0))
    on = await going_on(other.hub.update_room("lab", history_size=5))
    for _ in range(10):
        if history.held and not on.done():
            history.held.reverse()  # that of the one who came later is the quicker one
            await history.let_go()
        await one.advance(0.2)
    assert on.done()
    await one.hub.broadcast_room("lab", "said")
    while history.held:
        await history.let_go()
    await off

    assert await kept(other) == ["said"]


async def test_deleting_a_room_deletes_nothing_of_the_one_that_follows(one, history):
    await one.hub.create_room("lab", KEPT)
    await one.hub.broadcast_room("lab", "old")
    history.holds = True
    gone = await going_on(one.hub.delete_room("lab"))
    await history.let_go()
    made = await going_on(one.hub.create_room("lab", KEPT))
    if not made.done():
        await history.let_go()
    assert made.done()
    await one.hub.broadcast_room("lab", "said")
    while history.held:
        await history.let_go()
    await gone

    assert await kept(one) == ["said"]


async def test_a_switch_that_is_refused_holds_up_nobody(one, history):
    await one.hub.create_room("lab")
    with pytest.raises(RoomExists):
        await one.hub.create_room("lab", KEPT)
    with pytest.raises(ValueError, match="unknown"):
        await one.hub.update_room("lab", history_size=3, colour="red")
    with pytest.raises(RoomNotFound):
        await one.hub.update_room("nowhere", history_size=3)

    assert (await one.hub.update_room("lab", history_size=3)).epoch is not None
    assert (await one.state.room("lab")).switching is None


async def test_who_dies_in_the_middle_holds_up_the_others_only_for_a_time(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    await node.hub.create_room("lab")

    def claimed(room, standing):
        room.claim("dead", now=clock.wall(), until=clock.wall() + CLAIM_LIFETIME)
        return room, None

    await engine.inner.decide("lab", None, claimed)
    task = await going_on(node.hub.update_room("lab", history_size=3))
    await node.advance(CLAIM_LIFETIME.total_seconds() - 1)
    assert not task.done()

    await node.advance(2)

    assert task.done()
    assert task.result().options.history_size == 3


async def test_a_store_that_is_away_at_the_end_costs_a_log_line(make_node, clock):
    engine = Engine(MemoryHistory())
    state = Engine(MemoryState(clock=clock.now))
    node = await make_node(history=engine, state=state)
    await node.hub.create_room("lab")
    engine.before.add("remove")
    task = await going_on(node.hub.update_room("lab", history_size=3))
    state.away = True
    engine.go_on()
    await settle()
    assert isinstance(task.exception(), Unavailable)

    state.away = False
    assert "claim_not_released" in node.logger.of("warning")
    again = await going_on(node.hub.update_room("lab", history_size=3))
    await node.advance(CLAIM_LIFETIME.total_seconds() + 1)
    assert again.result().options.history_size == 3


def test_a_claim_is_one_s_own():
    room, soon = Room("lab", RoomOptions(), START), START + timedelta(seconds=5)

    assert room.claim("a", now=START, until=soon)
    assert not room.claim("b", now=START, until=soon)
    room.let_go("b")
    assert room.is_claimed_by("a")
    assert room.claim("b", now=soon, until=soon + CLAIM_LIFETIME)
    assert not room.is_claimed_by("a")
    room.let_go("b")
    assert room.switching is None
