"""The owner of a connection changes: commands, handlers and sessions check it after each wait."""

import asyncio

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.dispatch.middleware import auth_required
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.room import JoinOptions, RoomOptions, RoomRole
from tests.application.engines import Engine
from tests.application.fakes import FakeOutbound, Harness, settle

KEPT = RoomOptions(history_size=10)


class Case:
    """A node whose stores and sockets the test can hold up, with ben in the lab."""

    def __init__(self, node, state, history):
        self.node, self.hub, self.state, self.history = node, node.hub, state, history

    async def member(self, user, room="lab", **options):
        client = await self.node.connect(user, session=True)
        await self.hub.join(room, client.id, JoinOptions(**options))
        return client

    async def publish(self, client, room="lab"):
        client.say(
            {"id": "p", "topic": "system:publish", "ack": True, "data": {"room": room, "data": 1}}
        )
        await settle()


@pytest.fixture
async def case(make_node, clock):
    state, history = Engine(MemoryState(clock=clock.now)), Engine(MemoryHistory())
    node = await make_node(
        client_commands=True, state=state, history=history, writer=FakeOutbound()
    )
    return Case(node, state, history)


def acks(client):
    return [m["data"] for m in client.heard() if m.get("event") == "ack"]


def said(client):
    return [m["data"] for m in client.heard() if m["topic"] == "room:lab" and "event" not in m]


# --- publishing


async def leave(case, client):
    await case.hub.leave("lab", client.id)
    return "not_a_member"


async def kick(case, client):
    await case.hub.kick_user_from_room("ada", "lab")
    return "not_a_member"


async def ban(case, client):
    await case.hub.ban("lab", "ada")
    return "not_a_member"


async def silence(case, client):
    await case.hub.set_role("lab", "ada", RoomRole.GUEST)
    return "forbidden"


async def change(case, client):
    case.hub.set_meta(client.id, user_id="eve")
    await settle()
    return "unauthorized"


async def lose_roles(case, client):
    case.hub.set_meta(client.id, roles={"other"})
    return "unauthorized"


@pytest.mark.parametrize("what", [leave, kick, ban, silence, change, lose_roles])
@pytest.mark.parametrize("options", [RoomOptions(), KEPT], ids=["plain", "history"])
async def test_who_may_not_publish_any_more_does_not(case, what, options):
    """The message waits until there is room to write it; its sender's right is looked at
    when there is."""
    await case.hub.create_room("lab", options)
    ada, ben = await case.member("ada"), await case.member("ben")
    case.node.outbound.crowded = True
    await case.publish(ada)

    code = await what(case, ada)
    case.node.outbound.crowded = False
    await settle()

    assert [answer["code"] for answer in acks(ada)] == [code]
    assert said(ben) == []
    if options is KEPT:
        assert (await case.hub.history("lab")).messages == []


async def test_who_publishes_where_nobody_here_says_what_is_kept_is_looked_at_too(case):
    """The room's options are asked for, which takes its time."""
    await case.hub.create_room("lab", KEPT)
    ada, ben = await case.member("ada"), await case.member("ben")
    case.node.parts.streams._sequencers["lab"].retention = None
    case.state.after.add("room")
    await case.publish(ada)
    await case.hub.kick_user_from_room("ada", "lab")
    case.state.go_on()
    await settle()

    assert [answer["code"] for answer in acks(ada)] == ["not_a_member"]
    assert said(ben) == []


# --- reading


READ = {
    "members": ("standings", {"room": "lab"}),
    "history": ("room", {"room": "lab"}),
    "presence": ("presence", {"room": "lab"}),
}


@pytest.mark.parametrize("what", [kick, change])
@pytest.mark.parametrize("command", READ)
async def test_who_may_not_look_any_more_sees_nothing(case, command, what):
    await case.hub.create_room("lab", KEPT)
    ada = await case.member("ada")
    await case.hub.broadcast_room("lab", "secret")
    ada.heard()
    method, data = READ[command]
    case.state.after.add(method)
    ada.say({"id": "q", "topic": f"system:{command}", "ack": True, "data": data})
    await settle()

    code = await what(case, ada)
    case.state.go_on()
    await settle()

    assert [answer["code"] for answer in acks(ada)] == [code]


async def test_a_new_user_has_to_be_let_in_before_it_sees_or_says_anything(case):
    """While the seat still is the one of the user before."""
    await case.hub.create_room("lab", RoomOptions(policy="private", history_size=10))
    ada = await case.member("ada", force=True)
    ben = await case.member("ben", force=True)
    await case.hub.broadcast_room("lab", "secret")
    ada.heard()
    case.state.before.add("decide")
    case.hub.set_meta(ada.id, user_id="eve")
    for number, topic in enumerate(("publish", "history", "members", "typing")):
        data = {"room": "lab", "data": 1, "typing": True}
        ada.say({"id": str(number), "topic": f"system:{topic}", "ack": True, "data": data})
    await settle()
    case.state.go_on()
    await settle()

    assert [answer["code"] for answer in acks(ada)] == ["not_a_member"] * 4
    assert said(ben) == []


async def test_what_was_missed_is_not_sent_to_who_is_put_out_meanwhile(case):
    await case.hub.create_room("lab", KEPT)
    ada = await case.node.connect("ada")
    for n in range(3):
        await case.hub.broadcast_room("lab", "said", data=n)
    at = await case.hub.room("lab")
    case.history.after.add("read")
    places = {"lab": {"epoch": at.epoch, "offset": 0}}
    ada.say({"id": "r", "topic": "system:resume", "ack": True, "data": {"rooms": places}})
    await settle()

    await case.hub.kick_user_from_room("ada", "lab")
    case.history.go_on()
    await settle()

    heard = ada.heard()
    assert [m["topic"] for m in heard] == ["system:kicked", "system:resume"]
    assert heard[-1]["data"]["rooms"]["lab"]["code"] == "forbidden"


# --- joining


class Slow:
    """Lets in whom ``may`` says, and thinks about it until the test lets it go on."""

    def __init__(self, *may):
        self.may, self.gate, self.asked = may, asyncio.Event(), []

    def can_publish(self, meta, topic, event):
        return True

    async def can_subscribe(self, meta, room_id):
        self.asked.append(meta.user_id)
        await self.gate.wait()
        return meta.user_id in self.may


async def test_a_guest_is_not_let_into_the_room_of_the_user_before(make_node):
    access = Slow("admin")
    node = await make_node(client_commands=True, access_controller=access)
    client = await node.connect("admin")
    client.say({"id": "j", "topic": "system:join", "ack": True, "data": {"room": "lab"}})
    await settle()
    node.hub.set_meta(client.id, user_id="guest")
    access.gate.set()
    await settle()

    assert [answer["code"] for answer in acks(client)] == ["forbidden"]
    assert await node.hub.members("lab") == []
    assert client.conn.rooms == frozenset()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_so_it_is_where_the_store_takes_its_time(case, when):
    """Roles and bans are those of the user that the connection has in the end."""
    await case.hub.ban("lab", "eve")
    client = await case.node.connect("ada")
    getattr(case.state, when).add("decide")
    client.say({"id": "j", "topic": "system:join", "ack": True, "data": {"room": "lab"}})
    await settle()
    case.hub.set_meta(client.id, user_id="eve")
    await settle()
    case.state.go_on()
    await settle()

    assert [answer["code"] for answer in acks(client)] == ["join_forbidden"]
    assert await case.hub.members("lab") == []
    assert client.conn.rooms == frozenset()


class Publishers:
    """Lets these users send these topics; rooms are for all."""

    def __init__(self, **may):
        self.may, self.asked = may, []

    def can_publish(self, meta, topic, event):
        self.asked.append((meta.user_id, topic))
        return topic in self.may.get(meta.user_id or "nobody", ())

    def can_subscribe(self, meta, room_id):
        return True


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("command", ["join", "resume"])
@pytest.mark.parametrize("may", [True, False])
async def test_who_it_has_become_has_to_be_allowed_to_ask_for_it(
    make_node, clock, command, when, may
):
    """The controller was asked for the user before, and the store took its time."""
    topic = f"system:{command}"
    access = Publishers(ada=[topic], eve=[topic] if may else [])
    state = Engine(MemoryState(clock=clock.now))
    node = await make_node(client_commands=True, access_controller=access, state=state)
    client = await node.connect("ada")
    getattr(state, when).add("decide")
    data = {"room": "lab", "rooms": {"lab": {}}}
    client.say({"id": "j", "topic": topic, "ack": True, "data": data})
    await settle()
    node.hub.set_meta(client.id, user_id="eve")
    await settle()
    state.go_on()
    await settle()

    [answer] = acks(client)
    code = answer.get("code") if command == "join" else answer["rooms"]["lab"].get("code")
    assert code == (None if may else "forbidden")
    assert client.conn.rooms == ({"lab"} if may else frozenset())
    assert access.asked == [("ada", topic), ("eve", topic)]


@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("publish", {"room": "lab", "data": 1}),
        ("members", {"room": "lab"}),
        ("presence", {"users": ["x"]}),
    ],
)
@pytest.mark.parametrize("may", [True, False])
async def test_so_it_has_where_a_middleware_took_its_time(make_node, command, data, may):
    topics = ["system:publish", "system:members", "system:presence", "room:lab"]
    access = Publishers(ada=topics, eve=topics if may else [])
    node, gate = await make_node(client_commands=True, access_controller=access), asyncio.Event()

    async def slow(ctx, msg, next):
        await gate.wait()
        return await next(ctx, msg)

    node.hub.use(slow)
    client = await node.connect("ada")
    await node.hub.join("lab", client.id)
    client.say({"id": "q", "topic": f"system:{command}", "ack": True, "data": data})
    await settle()
    node.hub.set_meta(client.id, user_id="eve")
    await settle()
    gate.set()
    await settle()

    assert [answer.get("code") for answer in acks(client)] == [None if may else "forbidden"]


async def test_an_application_lets_in_whom_it_means(case):
    """What ``hub.join`` was told to force was meant for the user of that moment."""
    await case.hub.create_room("club", RoomOptions(policy="private"))
    client = await case.node.connect("ada")
    case.state.before.add("decide")
    options = JoinOptions(force=True, role=RoomRole.OWNER)
    task = asyncio.ensure_future(case.hub.join("club", client.id, options))
    await settle()
    case.hub.set_meta(client.id, user_id="eve")
    case.state.go_on()
    await settle()

    assert task.exception().code == "join_forbidden"
    assert await case.hub.members("club") == []


async def test_an_invite_is_not_used_up_by_a_join_that_was_void(case):
    await case.hub.create_room("club", RoomOptions(policy="invite_only"))
    await case.hub.invite("club", "ada")
    client = await case.node.connect("ada")
    case.state.after.add("decide")
    task = asyncio.ensure_future(case.hub.join("club", client.id))
    await settle()
    case.hub.set_meta(client.id, tags={"red"})
    case.state.go_on()
    await settle()

    assert task.result().members == 1
    other = await case.node.connect("ada")
    assert (await case.hub.join("club", other.id)).members == 2


async def test_a_controller_that_fails_lets_nobody_stay(make_node):
    class Broken(Slow):
        async def can_subscribe(self, meta, room_id):
            if meta.user_id == "eve":
                raise RuntimeError("a bug")
            return True

    node = await make_node(access_controller=Broken())
    client = await node.connect("ada")
    await node.hub.join("lab", client.id)

    node.hub.set_meta(client.id, user_id="eve")
    await settle()

    assert client.conn.rooms == frozenset()
    assert "access_not_decided" in node.logger.of("error")


# --- handlers


@pytest.mark.parametrize("may", [True, False])
async def test_a_handler_runs_for_whom_the_controller_lets_through_by_then(make_node, may):
    """It was asked for the user before, and a middleware took its time."""
    access = Publishers(ada=["buy"], eve=["buy"] if may else [])
    node, runs, gate = await make_node(access_controller=access), [], asyncio.Event()

    async def slow(ctx, msg, next):
        await gate.wait()
        return await next(ctx, msg)

    @node.on("buy", slow)
    async def buy(ctx, msg):
        runs.append(ctx.user_id)

    client = await node.connect("ada")
    client.say({"id": "q", "topic": "buy", "ack": True})
    await settle()
    node.hub.set_meta(client.id, user_id="eve")
    gate.set()
    await settle()

    assert runs == (["eve"] if may else [])
    assert [answer.get("code") for answer in acks(client)] == [None if may else "forbidden"]
    assert access.asked == [("ada", "buy"), ("eve", "buy")]


async def test_a_handler_runs_only_for_whom_the_guard_has_let_through(make_node):
    node, runs, gate = await make_node(), [], asyncio.Event()

    async def slow(ctx, msg, next):
        await gate.wait()
        return await next(ctx, msg)

    @node.on("secret", auth_required("admin"), slow)
    async def secret(ctx, msg):
        runs.append(ctx.user_id)

    ada = await node.connect("ada", roles={"admin"})
    ada.say({"id": "q", "topic": "secret", "ack": True})
    await settle()
    node.hub.set_meta(ada.id, user_id=None, roles=())
    gate.set()
    await settle()

    assert runs == []
    assert [answer["code"] for answer in acks(ada)] == ["unauthorized"]


# --- sessions


@pytest.fixture
def pair_config():
    return {"session_ttl": 60.0}


def with_login(node: Harness):
    """Handlers that log in by a message, and that say who asks."""
    runs = []

    @node.on("login")
    async def login(ctx, msg):
        runs.append(("login", ctx.user_id))
        ctx.hub.set_meta(ctx.conn.id, user_id=msg.data, roles={"staff"}, tags={"red"})
        return {"welcome": msg.data}

    @node.on("order")
    async def order(ctx, msg):
        runs.append(("order", ctx.user_id))
        return {"n": len(runs)}

    return runs


LOGIN = {"id": "l", "topic": "login", "ack": True, "data": "ada"}
ORDER = {"id": "o", "topic": "order", "ack": True}


async def logged_in(node):
    client = await node.connect(session=True)
    await client.ask(LOGIN)
    await node.hub.join("lab", client.id)
    await client.ask(ORDER)
    return client


def resume(client, rooms=("lab",)):
    data = {"session": client.welcome["session"], "rooms": {room: {} for room in rooms}}
    return {"id": "r", "topic": "system:resume", "ack": True, "data": data}


@pytest.mark.parametrize("how", ["here", "another node", "left to the state"])
async def test_who_logged_in_by_a_message_is_that_user_again_after_a_cut(one, two, how):
    """What it asked is not handled again, its rooms are there, and it is who it was."""
    runs = with_login(one)
    node = one if how == "here" else two
    if node is two:
        runs_there = with_login(two)
    client = await logged_in(one)
    if how == "left to the state":
        client.link.vanish(DisconnectReason.CONNECTION_LOST)
        await settle()
        await one.stop()
    else:
        await client.vanish()

    again = await node.connect(session=True)
    [answer] = await again.ask(resume(client))
    assert "code" not in answer["data"]["rooms"]["lab"]
    assert (await again.ask(LOGIN))[0]["data"]["welcome"] == "ada"
    assert (await again.ask(ORDER))[0]["data"]["n"] == 2
    assert runs == [("login", None), ("order", "ada")]
    assert (again.conn.user_id, again.conn.meta.roles) == ("ada", {"staff"})
    assert node.hub.find_by_tag("red") == [again.id]
    assert [(m.user_id, m.connections) for m in await node.hub.members("lab")] == [("ada", 1)]

    if node is two:
        assert runs_there == []


async def test_a_second_cut_loses_nothing_either(one):
    runs = with_login(one)
    first = await logged_in(one)
    await first.vanish()
    second = await one.connect(session=True)
    await second.ask(resume(first))
    await second.vanish()

    third = await one.connect(session=True)
    await third.ask(resume(second))

    assert third.conn.user_id == "ada"
    assert (await third.ask(ORDER))[0]["data"]["n"] == 2
    assert len(runs) == 2


@pytest.mark.parametrize("who", ["eve", "bob"])
async def test_a_session_is_worth_nothing_to_whom_the_handshake_names_otherwise(one, who):
    with_login(one)
    client = await logged_in(one)
    await client.vanish()

    other = await one.connect(who, session=True)
    [answer] = await other.ask(resume(client))

    assert answer["data"]["rooms"]["lab"]["code"] == "forbidden"
    assert other.conn.user_id == who


async def test_a_login_that_has_run_out_does_not_come_back(one, clock):
    with_login(one)
    client = await logged_in(one)
    ends = clock.wall().replace(microsecond=0)
    one.hub.set_meta(client.id, expires_at=ends)
    await one.advance(1)
    assert client.closed is DisconnectReason.TOKEN_EXPIRED

    again = await one.connect(session=True)
    [answer] = await again.ask(resume(client))

    assert answer["data"]["rooms"]["lab"]["code"] == "forbidden"
    assert again.conn.user_id is None


async def test_who_logged_out_stays_logged_out(one):
    client = await one.connect("ada", session=True)
    one.hub.set_meta(client.id, user_id=None)
    await client.vanish()

    again = await one.connect("ada", session=True)
    await again.ask(resume(client, rooms=()))

    assert again.conn.user_id is None


@pytest.mark.parametrize("asked", ["here", "there"])
async def test_who_is_sent_away_while_it_is_cut_off_has_nothing_to_come_back_to(one, two, asked):
    with_login(one)
    client = await logged_in(one)
    await client.vanish()

    await (one if asked == "here" else two).hub.disconnect_user("ada")
    await settle()

    again = await one.connect(session=True)
    [answer] = await again.ask(resume(client))
    assert answer["data"]["rooms"]["lab"]["code"] == "forbidden"
    assert again.conn.user_id is None


async def test_a_connection_that_was_never_let_in_leaves_no_session(one):
    @one.hub.on_connect
    async def hook(conn):
        one.hub.set_meta(conn.id, user_id="ada")
        raise RuntimeError("a moment's failure")

    client = await one.connect(session=True)
    one.hub.remove_hook(hook)

    again = await one.connect(session=True)
    await again.ask(resume(client, rooms=()))

    assert again.conn.user_id is None
