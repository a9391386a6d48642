import asyncio
import inspect
from datetime import timedelta

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.errors import (
    Forbidden,
    Misuse,
    Overloaded,
    RateLimited,
    RoomFull,
    Unauthorized,
    Unavailable,
)
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta, Where
from eyewall.domain.report import AckOptions, SendOptions, Target
from eyewall.domain.room import RoomOptions
from tests.application.fakes import START, settle


class SlowState(MemoryState):
    """A state whose ``appear`` waits for the gate, as an engine far away does."""

    def __init__(self, clock):
        super().__init__(clock=clock.now)
        self.gate = asyncio.Event()
        self.fault = None

    async def appear(self, *args):
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        await super().appear(*args)


@pytest.fixture
def told(node):
    """What the lifecycle hooks heard."""
    told = []
    node.hub.on_connect(lambda conn: told.append(("connect", conn.user_id)))
    node.hub.on_disconnect(lambda conn, reason: told.append(("disconnect", reason)))
    return told


# --- who knocks


async def told_who(node, handshake):
    meta = node.transport_events.authenticate(handshake)
    return await meta if inspect.isawaitable(meta) else meta


async def test_without_an_authenticator_nobody_in_particular_is_let_in(node):
    meta = await told_who(node, Handshake(ip="10.0.0.1", headers={"User-Agent": "x" * 1000}))

    assert meta == ConnMeta(ip="10.0.0.1", user_agent="x" * 256)


@pytest.mark.parametrize("is_async", [True, False])
async def test_the_authenticator_says_who_it_is(make_node, is_async):
    def plain(handshake):
        return ConnMeta(user_id=handshake.query.get("user"))

    async def waits(handshake):
        return plain(handshake)

    node = await make_node(authenticator=waits if is_async else plain)
    meta = await told_who(node, Handshake(query={"user": "ada"}, ip="10.0.0.1"))

    assert (meta.user_id, meta.ip) == ("ada", "10.0.0.1")


async def test_what_the_authenticator_says_of_the_address_counts(make_node):
    node = await make_node(authenticator=lambda handshake: ConnMeta(ip="1.1.1.1", user_agent="me"))

    meta = await told_who(node, Handshake(ip="10.0.0.1"))

    assert (meta.ip, meta.user_agent) == ("1.1.1.1", "me")


async def test_an_authenticator_that_says_none_refuses(make_node):
    node = await make_node(authenticator=lambda handshake: None)

    with pytest.raises(Unauthorized):
        await told_who(node, Handshake())


# --- the beginning


async def test_the_order_of_a_beginning(node):
    """Registered, welcomed, the ``on_connect`` hooks, then reading."""
    seen = []
    link = node.link()

    @node.hub.on_connect
    async def hook(conn):
        seen.append(node.hub.connection(conn.id) is conn)
        seen.append((await node.hub.presence("ada")).online)
        seen.append(len(link.frames))
        await conn.send("hello")

    ada = await node.connect("ada", session=True, link=link)

    assert seen == [True, True, 1]
    assert [m["topic"] for m in ada.heard()] == ["hello"]


async def test_the_welcome_says_what_a_client_needs(node):
    ada = await node.connect("ada", session=True)

    assert ada.welcome == {
        "conn_id": ada.id,
        "user_id": "ada",
        "node_id": "n1",
        "session": ada.conn.session,
        "heartbeat": 25.0,
        "max_message_size": 1 << 20,
        "server": "eyewall/",
    }
    assert len(ada.conn.session) >= 32


async def test_the_welcome_is_the_first_message_whatever_is_broadcast(make_node, clock):
    state = SlowState(clock)
    node = await make_node(state=state)
    link = node.link()
    task = asyncio.ensure_future(node.connect("ada", session=True, link=link))
    await settle()
    await node.hub.broadcast("news")
    state.gate.set()
    ada = await task

    assert ada.welcome is not None
    assert [m["topic"] for m in ada.heard()] == ["news"]


async def test_without_a_subprotocol_there_is_no_welcome(node):
    ada = await node.connect("ada")

    assert ada.heard() == []
    assert ada.conn.session is None


async def test_a_hook_that_refuses_ends_the_connection(node, told):
    @node.hub.on_connect
    async def no(conn):
        raise Forbidden("not you")

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION
    assert told == [("connect", "ada"), ("disconnect", DisconnectReason.POLICY_VIOLATION)]
    assert node.hub.connection_ids() == []
    assert node.logger.of("error") == []


@pytest.mark.parametrize(
    ("error", "reason", "level", "event"),
    [
        (Forbidden("no"), "POLICY_VIOLATION", "info", "on_connect_refused"),
        (Unauthorized("no"), "POLICY_VIOLATION", "info", "on_connect_refused"),
        (Unavailable("away"), "OVERLOADED", "warning", "on_connect_put_off"),
        (Overloaded("full"), "OVERLOADED", "warning", "on_connect_put_off"),
        (RateLimited(1.0), "OVERLOADED", "warning", "on_connect_put_off"),
        (RoomFull("full"), "OVERLOADED", "warning", "on_connect_put_off"),
        (Misuse("a bug"), "INTERNAL_ERROR", "error", "on_connect_failed"),
        (RuntimeError("a bug"), "INTERNAL_ERROR", "error", "on_connect_failed"),
        (TimeoutError(), "INTERNAL_ERROR", "error", "on_connect_failed"),
    ],
    ids=repr,
)
async def test_the_close_tells_whether_to_come_back(node, error, reason, level, event):
    """After a moment's failure a client should; after a refusal it should not."""

    @node.hub.on_connect
    async def fails(conn):
        raise error

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason[reason]
    assert node.logger.of(level) == [event]


async def test_a_hook_that_refuses_on_purpose_is_no_fault(node):
    @node.hub.on_connect
    def no(conn):
        raise Unauthorized("not you")

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION
    assert node.logger.of("error") == []


async def test_a_hook_that_awaits_something_cancelled_has_failed(node):
    @node.hub.on_connect
    async def broken(conn):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason.INTERNAL_ERROR


async def test_on_error_hears_of_a_hook_that_fails(node):
    errors = []
    node.hub.on_error(lambda conn, error: errors.append(str(error)))

    @node.hub.on_connect
    def broken(conn):
        raise RuntimeError("bug")

    ada = await node.connect("ada")

    assert errors == ["bug"]
    assert ada.closed is DisconnectReason.INTERNAL_ERROR


async def test_a_slow_hook_delays_only_its_own_connection(node):
    gate = asyncio.Event()

    @node.hub.on_connect
    async def slow(conn):
        if conn.user_id == "ada":
            await gate.wait()

    task = asyncio.ensure_future(node.connect("ada"))
    bob = await node.connect("bob")

    assert bob.conn.is_open
    gate.set()
    await task


async def test_open_returns_whether_reading_may_begin(node):
    link = node.link()
    opened = await node.transport_events.open(
        link, ConnMeta(), node.transport_events.reserve(None), session=False
    )
    assert opened is True

    @node.hub.on_connect
    async def closes(conn):
        await conn.close()

    link = node.link()
    opened = await node.transport_events.open(
        link, ConnMeta(), node.transport_events.reserve(None), session=False
    )
    assert opened is False


async def test_a_connection_that_is_lost_before_the_hooks_began_is_none_to_them(make_node, clock):
    """Hooks come in pairs: who did not hear of the connect hears of no disconnect."""
    told = []
    state = SlowState(clock)
    node = await make_node(state=state)
    node.hub.on_connect(lambda conn: told.append("connect"))
    node.hub.on_disconnect(lambda conn, reason: told.append("disconnect"))
    link = node.link()
    task = asyncio.ensure_future(node.connect("ada", link=link))
    await settle()

    node.transport_events.lost(link, DisconnectReason.CONNECTION_LOST)
    state.gate.set()
    await task

    assert told == []


async def test_who_is_lost_while_presence_is_set_leaves_none_behind(make_node, clock):
    state = SlowState(clock)
    node = await make_node(state=state)
    link = node.link()
    task = asyncio.ensure_future(node.connect("ada", link=link))
    await settle()

    node.transport_events.lost(link, DisconnectReason.CONNECTION_LOST)
    await settle()
    state.gate.set()
    await task
    await settle()

    assert not (await node.hub.presence("ada")).online


async def test_with_the_state_away_a_connection_is_let_in_all_the_same(make_node, clock):
    state = SlowState(clock)
    state.gate.set()
    node = await make_node(state=state)
    state.fault = Unavailable("away")

    ada = await node.connect("ada")

    assert ada.conn.is_open
    assert "presence_not_set" in node.logger.of("warning")


@pytest.mark.parametrize("how", ["fault", "cancelled"])
async def test_a_beginning_that_breaks_off_leaves_nothing_behind(make_node, clock, how):
    state = SlowState(clock)
    node = await make_node(state=state, max_connections=1)
    link = node.link()
    place = node.transport_events.reserve(None)
    task = asyncio.ensure_future(
        node.transport_events.open(link, ConnMeta(user_id="ada"), place, session=False)
    )
    await settle()
    if how == "cancelled":
        task.cancel()
    else:
        state.fault = RuntimeError("bug")
        state.gate.set()
    await settle()

    assert task.done()
    assert link.closed is DisconnectReason.INTERNAL_ERROR
    assert node.hub.connection_ids() == []
    node.transport_events.reserve(None)
    task.cancelled() or task.exception()


async def test_a_connection_that_opens_while_the_node_drains_is_refused(make_node):
    """The handshake had begun before: nobody would close this connection any more."""
    node = await make_node(max_connections=1)
    link, place = node.link(), node.transport_events.reserve(None)
    node.parts.connections.draining = True

    assert not await node.transport_events.open(link, ConnMeta(), place, session=True)

    assert link.closed is DisconnectReason.SERVER_SHUTDOWN
    node.parts.connections.draining = False
    node.transport_events.reserve(None)


async def test_over_the_user_s_limit_the_oldest_has_to_go(make_node):
    node = await make_node(max_connections_per_user=2)

    first, second, third = [await node.connect("ada") for _ in range(3)]
    await node.connect("bob")
    await settle()

    assert first.closed is DisconnectReason.REPLACED
    assert (second.closed, third.closed) == (None, None)


async def test_a_connection_that_is_refused_costs_the_user_no_other(make_node):
    node = await make_node(max_connections_per_user=1)
    first = await node.connect("ada")

    @node.hub.on_connect
    async def no(conn):
        raise Forbidden("not you")

    second = await node.connect("ada")

    assert second.closed is DisconnectReason.POLICY_VIOLATION
    assert first.closed is None


async def test_a_connection_that_is_being_asked_for_does_not_count(make_node):
    """On any node: it may be refused, and then the others went for nothing."""
    one, two = [await make_node(max_connections_per_user=2) for _ in range(2)]
    first, gate = await one.connect("ada"), asyncio.Event()

    @two.hub.on_connect
    async def slow(conn):
        await gate.wait()

    task = asyncio.ensure_future(two.connect("ada"))
    await settle()
    second = await one.connect("ada")
    assert (first.closed, second.closed) == (None, None)

    gate.set()
    third = await task
    await settle()
    assert (first.closed, second.closed) == (DisconnectReason.REPLACED, None)
    assert third.closed is None


# --- before it is let in


class Asked:
    """A node whose hook decides on ``ada`` when the test says so."""

    def __init__(self, node, then=None):
        self.node, self.then = node, then
        self.gate, self.error, self.begun = asyncio.Event(), None, asyncio.Event()
        node.hub.on_connect(self.hook)
        self.link = node.link()

    async def hook(self, conn):
        if conn.user_id != "ada":
            return
        if self.then is not None:
            await self.then(conn)
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def begin(self):
        self.task = asyncio.ensure_future(self.node.connect("ada", link=self.link, tags={"red"}))
        await self.begun.wait()
        return self.link.owner

    async def end(self, error=None):
        self.error = error
        self.gate.set()
        client = await self.task
        await settle()
        return client


async def send_everything(node):
    """All ways to reach somebody who is not named by its connection."""
    hub, news = node.hub, Message("news")
    await hub.broadcast("news")
    await hub.broadcast_text("news")
    await hub.broadcast_room("lab", "news")
    await hub.broadcast_with_filter(news, lambda meta: True)
    await hub.broadcast_with_filter(news, Where(tags={"red"}))
    await hub.emit_to_room("lab", news)
    await hub.emit_to_room_except("lab", [], news)
    report = await hub.send_to_user("ada", news)
    assert report.success == 0
    acked = SendOptions(require_ack=True, ack_timeout=1.0)
    assert (await hub.send_to_user("ada", news, acked)).success == 0
    assert await hub.emit_to_room("lab", news, acked) == 0
    assert await hub.broadcast_with_filter(news, Where(tags={"red"}), acked) == 0
    result = await hub.emit_with_ack(Target.room("lab"), news, AckOptions(timeout=1.0))
    assert result.expected == 0
    result = await hub.emit_with_ack(Target.user("ada"), news, AckOptions(timeout=1.0))
    assert result.received == 0


async def test_who_is_refused_has_got_nothing_of_the_others(make_node):
    """Broadcasts, filters, its user's messages, and rooms that the hook has joined it to."""
    one, two = await make_node(), await make_node()
    asked = Asked(one, lambda conn: one.hub.join("lab", conn.id))
    await asked.begin()

    await send_everything(one)
    await two.hub.broadcast("news")
    await two.hub.broadcast_room("lab", "news")
    await two.hub.broadcast_with_filter(Message("news"), Where(tags={"red"}))
    await two.hub.send_to_user("ada", Message("news"))
    await settle()
    ada = await asked.end(Forbidden("no"))

    assert ada.heard() == []
    assert ada.closed is DisconnectReason.POLICY_VIOLATION
    assert len(one.parts.broadcast_groups) == 0


async def test_who_is_let_in_gets_what_its_rooms_sent_meanwhile_and_all_from_then_on(node):
    asked = Asked(node, lambda conn: node.hub.join("lab", conn.id))
    await asked.begin()
    await node.hub.broadcast_room("lab", "before")
    ada = await asked.end()

    await node.hub.broadcast("news")
    await node.hub.broadcast_room("lab", "after")
    await node.hub.send_to_user("ada", Message("mail"))

    assert [m["topic"] for m in ada.heard()] == ["before", "news", "after", "mail"]


async def test_a_room_with_history_has_no_gap_for_who_joined_it_in_the_hook(make_node):
    one, two = await make_node(), await make_node()
    await one.hub.create_room("lab", RoomOptions(history_size=10))
    await one.hub.broadcast_room("lab", "zero")
    asked = Asked(one, lambda conn: one.hub.join("lab", conn.id))
    await asked.begin()
    await one.hub.broadcast_room("lab", "first")
    await two.hub.broadcast_room("lab", "second")
    await settle()
    ada = await asked.end()
    await one.hub.broadcast_room("lab", "third")
    await settle()

    assert [m["topic"] for m in ada.heard()] == ["first", "second", "third"]


async def test_what_is_lost_before_it_is_let_in_is_told_as_a_gap(make_node):
    node = await make_node()
    await node.hub.create_room("lab", RoomOptions(history_size=1))
    asked = Asked(node, lambda conn: node.hub.join("lab", conn.id))
    await asked.begin()
    for topic in ("first", "second"):
        await node.hub.broadcast_room("lab", topic)
    ada = await asked.end()

    [gap] = ada.heard()
    assert (gap["topic"], gap["data"]["room"], gap["data"]["offset"]) == ("system:gap", "lab", 0)


async def test_a_hook_reaches_its_own_connection(node):
    """By its id, and as one of the registry: it may be greeted, joined and looked up."""
    seen = []

    @node.hub.on_connect
    async def hook(conn):
        await conn.send("one")
        report = await node.hub.send_to_conn(conn.id, "two")
        seen.append((report.error, report.target))
        seen.append((await node.hub.join("lab", conn.id)).members)
        seen.append((conn.rooms, node.hub.connection(conn.id) is conn, node.hub.users()))
        seen.append([m.user_id for m in await node.hub.members("lab")])

    ada = await node.connect("ada")

    assert [m["topic"] for m in ada.heard()] == ["one", "two"]
    assert seen == [(None, ada.id), 1, ({"lab"}, True, ["ada"]), ["ada"]]


@pytest.mark.parametrize("how", ["request", "emit_with_ack", "deliver", "in a task"])
async def test_a_hook_can_not_wait_for_an_answer_of_its_own_connection(node, how):
    """It is read when the hook has ended: the answer could not come."""
    raised = []

    async def ask(conn):
        hub, message = node.hub, Message("who")
        if how == "request":
            await hub.request(conn.id, message)
        elif how == "emit_with_ack":
            await hub.emit_with_ack(Target.conn(conn.id), message)
        elif how == "deliver":
            await hub.deliver(conn.id, message, SendOptions(require_ack=True))
        else:
            await asyncio.wait_for(hub.request(conn.id, message), 5)

    @node.hub.on_connect
    async def hook(conn):
        try:
            await ask(conn)
        except Misuse as error:
            raised.append(error)

    ada = await node.connect("ada")

    assert len(raised) == 1
    assert ada.heard() == []


async def test_a_hook_may_ask_another_connection(node):
    ben, answers = await node.connect("ben"), []

    @node.hub.on_connect
    async def hook(conn):
        answers.append(await node.hub.request(ben.id, Message("who")))

    task = asyncio.ensure_future(node.connect("ada"))
    await settle()
    [question] = ben.heard()
    ben.ack(question, "ada is fine")
    await task

    assert answers == ["ada is fine"]


async def test_an_operator_reaches_who_is_being_asked_for(node):
    asked = Asked(node)
    await asked.begin()

    assert await node.hub.disconnect_user("ada") == 1

    ada = await asked.end()
    assert ada.closed is DisconnectReason.DISCONNECTED


async def test_a_token_that_has_run_out_already_ends_the_connection_at_once(node):
    ada = await node.connect(meta=ConnMeta(expires_at=START - timedelta(seconds=1)))
    await node.advance(0)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


# --- what happens to it


async def test_on_error_hears_what_ended_a_link(node, told):
    errors = []
    node.hub.on_error(lambda conn, error: errors.append((conn.user_id, str(error))))
    ada = await node.connect("ada")

    await ada.vanish(DisconnectReason.WRITE_ERROR, OSError("reset"))

    assert errors == [("ada", "reset")]
    assert told[-1] == ("disconnect", DisconnectReason.WRITE_ERROR)


async def test_a_link_that_nobody_owns_is_of_no_interest(node):
    link = node.link()

    node.transport_events.lost(link, DisconnectReason.CONNECTION_LOST)
    node.transport_events.received(link, b"{}", binary=False)
