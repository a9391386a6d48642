"""What is left of a connection's messages when it has ended."""

import asyncio

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.room import RoomOptions
from tests.application.engines import Engine
from tests.application.fakes import settle


@pytest.fixture
async def history():
    return Engine(MemoryHistory())


@pytest.fixture
def pair_config(history):
    return {"client_commands": True, "session_ttl": 60.0, "history": history}


class Gate:
    """A handler that waits, so that what comes behind it stays in the lane."""

    def __init__(self, node):
        self.handled, self._open = [], asyncio.Event()
        node.hub.handle("wait", self.wait)
        node.hub.handle("note", self.note)

    async def wait(self, ctx, msg):
        await self._open.wait()

    async def note(self, ctx, msg):
        self.handled.append((msg.data, ctx.conn.is_open, ctx.user_id))
        return {"n": len(self.handled)}

    async def open(self):
        self._open.set()
        await settle()


def publish(n, **fields):
    return {"topic": "system:publish", "data": {"room": "lab", "data": n}, **fields}


async def in_the_lab(node, user="ada"):
    client = await node.connect(user, session=True)
    await node.hub.join("lab", client.id)
    return client


async def kept(node):
    return [m.data for m in (await node.hub.history("lab")).messages]


@pytest.mark.parametrize(
    "reason", [DisconnectReason.CLIENT_CLOSED, DisconnectReason.CONNECTION_LOST]
)
@pytest.mark.parametrize("size", [0, 50])
async def test_what_it_still_wanted_to_publish_is_not_published(one, size, reason):
    """The others have heard it leave, and hear no more of it."""
    await one.hub.create_room("lab", RoomOptions(history_size=size, announce=True))
    ben, ada, gate = await in_the_lab(one, "ben"), await in_the_lab(one), Gate(one)
    ada.say({"topic": "wait"})
    for n in range(30):
        ada.say(publish(n))
    await settle()
    await ada.vanish(reason)
    await gate.open()

    heard = [m.get("event", "message") for m in ben.heard()]
    assert heard[-1] == "leave"
    assert "message" not in heard
    if size:
        assert await kept(one) == []


@pytest.mark.parametrize("command", ["join", "leave", "typing", "members", "history", "resume"])
async def test_no_other_command_acts_either(one, command):
    ada, gate = await in_the_lab(one), Gate(one)
    joins, leaves = [], []
    one.hub.on_join(lambda room, conn: joins.append(room))
    one.hub.on_leave(lambda room, conn, reason: leaves.append(str(reason)))
    ada.say({"topic": "wait"})
    data = {"room": "lab" if command == "leave" else "hall", "typing": True, "rooms": {"hall": {}}}
    ada.say({"topic": f"system:{command}", "id": "c", "ack": True, "data": data})
    await settle()
    await ada.vanish()
    await gate.open()

    assert (joins, leaves) == ([], ["disconnected"])
    assert await one.hub.rooms() == []
    assert (await one.hub.presence("ada")).typing == {}


async def test_a_publish_that_waits_for_room_is_not_made_after_the_end(one):
    await one.hub.create_room("lab", RoomOptions(history_size=10))
    ben, ada = await in_the_lab(one, "ben"), await in_the_lab(one)
    one.outbound.crowded = True
    ada.say(publish(1))
    await settle()
    await ada.vanish()
    one.outbound.crowded = False
    await settle()

    assert ben.heard() == []
    assert await kept(one) == []


async def test_the_application_handles_what_came_before_the_end(one):
    """In its order; the handler can see that nobody waits for an answer any more."""
    ada, gate = await one.connect("ada"), Gate(one)
    ada.say({"topic": "wait"})
    for n in range(3):
        ada.say({"topic": "note", "data": n})
    await settle()
    await ada.vanish()
    await gate.open()

    assert gate.handled == [(n, False, "ada") for n in range(3)]


async def back(one, old):
    client = await one.connect("ada", session=True)
    data = {"session": old.welcome["session"], "rooms": {"lab": {}}}
    await client.ask({"id": "back", "topic": "system:resume", "ack": True, "data": data})
    return client


def answers(client):
    return [(m["ref"], m["data"]["status"]) for m in client.heard() if m.get("event") == "ack"]


async def test_who_comes_back_publishes_what_was_not(one):
    """Once, and in order: the retransmissions act, since the first ones did not."""
    await one.hub.create_room("lab", RoomOptions(history_size=50))
    ada, gate = await in_the_lab(one), Gate(one)
    ada.say({"topic": "wait", "id": "w", "ack": True})
    requests = [publish(n, id=f"p{n}", ack=True) for n in range(3)]
    for request in requests:
        ada.say(request)
    await settle()
    await ada.vanish()

    again = await back(one, ada)
    for request in [*requests, publish(3, id="p3", ack=True)]:
        again.say(request)
    await settle()
    await gate.open()

    assert answers(again) == [(f"p{n}", "ok") for n in range(4)]
    assert await kept(one) == [0, 1, 2, 3]
    for request in requests:
        again.say(request)
    await settle()
    assert await kept(one) == [0, 1, 2, 3]


async def test_one_that_had_begun_and_did_not_act_is_done_for_who_came_back(one):
    """Its repeat waited for the answer that the first would have had."""
    await one.hub.create_room("lab", RoomOptions(history_size=50))
    ada = await in_the_lab(one)
    one.outbound.crowded = True
    ada.say(publish(1, id="p", ack=True))
    await settle()
    await ada.vanish()
    again = await back(one, ada)
    again.say(publish(1, id="p", ack=True))
    await settle()
    assert answers(again) == []

    one.outbound.crowded = False
    await settle()

    assert answers(again) == [("p", "ok")]
    assert await kept(one) == [1]


async def test_one_that_had_acted_is_answered_from_what_it_did(one, history):
    await one.hub.create_room("lab", RoomOptions(history_size=50))
    ada = await in_the_lab(one)
    history.after.add("append")
    ada.say(publish(1, id="p", ack=True))
    await settle()
    await ada.vanish()
    again = await back(one, ada)
    again.say(publish(1, id="p", ack=True))
    await settle()
    history.go_on()
    await settle()

    assert answers(again) == [("p", "ok")]
    assert await kept(one) == [1]


async def test_an_access_controller_that_thinks_past_the_end_lets_nothing_through(make_node):
    gate = asyncio.Event()

    class Slow:
        async def can_publish(self, meta, topic, event):
            await gate.wait()
            return True

        def can_subscribe(self, meta, room_id):
            return True

    node = await make_node(client_commands=True, access_controller=Slow())
    ada = await node.connect("ada")
    ada.say({"topic": "system:join", "data": {"room": "lab"}})
    await settle()
    await ada.vanish()
    gate.set()
    await settle()

    assert await node.hub.rooms() == []


async def test_a_node_that_stops_says_nothing_of_commands_that_are_void(one):
    ada, gate = await in_the_lab(one), Gate(one)
    ada.say({"topic": "wait"})
    ada.say(publish(1, id="p", ack=True))
    await settle()
    await ada.vanish()

    await one.stop()

    assert gate.handled == []
    assert one.logger.of("error") == []


class Thinks:
    """An access controller that thinks about rooms until the test lets it go on."""

    def __init__(self):
        self.gate = asyncio.Event()

    def can_publish(self, meta, topic, event):
        return True

    async def can_subscribe(self, meta, room_id):
        if room_id != "lab":
            await self.gate.wait()
        return True


@pytest.mark.parametrize("topic", ["join", "resume"])
@pytest.mark.parametrize("held_by", ["controller", "before", "after", "hook"])
async def test_a_join_that_a_cut_has_met_is_asked_anew_by_its_repeat(
    make_node, clock, topic, held_by
):
    """What it answers is about the connection that asked last."""
    access, state = Thinks(), Engine(MemoryState(clock=clock.now))
    node = await make_node(
        client_commands=True, session_ttl=60.0, access_controller=access, state=state
    )
    ada = await node.connect("ada", session=True)
    told = asyncio.Event()
    if held_by != "controller":
        access.gate.set()
    if held_by == "hook":  # it is in, and the cut comes before its answer
        node.hub.on_join(lambda room, conn: told.wait() if conn.id == ada.id else None)
    elif held_by != "controller":
        getattr(state, held_by).add("decide")
    data = {"room": "hall"} if topic == "join" else {"rooms": {"hall": {}}}
    request = {"id": "j", "topic": f"system:{topic}", "ack": True, "data": data}
    ada.say(request)
    await settle()
    await ada.vanish()
    again = await node.connect("ada", session=True)
    resume = {"session": ada.welcome["session"], "rooms": {}}
    again.say({"id": "back", "topic": "system:resume", "ack": True, "data": resume})
    await settle()
    again.say(request)
    await settle()
    access.gate.set()
    state.go_on()
    told.set()
    await settle()

    assert answers(again) == [("back", "ok"), ("j", "ok")]
    assert again.conn.rooms == {"hall"}
    assert [m.connections for m in await node.hub.members("hall")] == [1]
