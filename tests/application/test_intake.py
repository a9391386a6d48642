import asyncio
import inspect
from datetime import timedelta

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import Unauthorized, Unavailable
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta
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
    meta = node.intake.authenticate(handshake)
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
        "heartbeat": 30.0,
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


async def test_a_hook_that_raises_refuses_the_connection(node, told):
    @node.hub.on_connect
    async def no(conn):
        raise PermissionError("not you")

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION
    assert told == [("connect", "ada"), ("disconnect", DisconnectReason.POLICY_VIOLATION)]
    assert node.hub.connection_ids() == []
    assert node.logger.of("error") == ["on_connect_failed"]


async def test_a_hook_that_refuses_on_purpose_is_no_fault(node):
    @node.hub.on_connect
    def no(conn):
        raise Unauthorized("not you")

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION
    assert node.logger.of("error") == []


async def test_a_hook_that_awaits_something_cancelled_refuses_too(node):
    @node.hub.on_connect
    async def broken(conn):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    ada = await node.connect("ada")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION


async def test_on_error_hears_of_a_hook_that_fails(node):
    errors = []
    node.hub.on_error(lambda conn, error: errors.append(str(error)))

    @node.hub.on_connect
    def broken(conn):
        raise RuntimeError("bug")

    await node.connect("ada")

    assert errors == ["bug"]


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
    opened = await node.intake.open(link, ConnMeta(), node.intake.reserve(None), session=False)
    assert opened is True

    @node.hub.on_connect
    async def closes(conn):
        await conn.close()

    link = node.link()
    opened = await node.intake.open(link, ConnMeta(), node.intake.reserve(None), session=False)
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

    node.intake.lost(link, DisconnectReason.CONNECTION_LOST)
    state.gate.set()
    await task

    assert told == []


async def test_who_is_lost_while_presence_is_set_leaves_none_behind(make_node, clock):
    state = SlowState(clock)
    node = await make_node(state=state)
    link = node.link()
    task = asyncio.ensure_future(node.connect("ada", link=link))
    await settle()

    node.intake.lost(link, DisconnectReason.CONNECTION_LOST)
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
    place = node.intake.reserve(None)
    task = asyncio.ensure_future(
        node.intake.open(link, ConnMeta(user_id="ada"), place, session=False)
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
    node.intake.reserve(None)
    task.cancelled() or task.exception()


async def test_who_comes_through_the_door_while_the_node_drains_is_turned_away(make_node):
    """The handshake had begun before: nobody would close this connection any more."""
    node = await make_node(max_connections=1)
    link, place = node.link(), node.intake.reserve(None)
    node.node.connections.draining = True

    assert not await node.intake.open(link, ConnMeta(), place, session=True)

    assert link.closed is DisconnectReason.SERVER_SHUTDOWN
    node.node.connections.draining = False
    node.intake.reserve(None)


async def test_over_the_user_s_limit_the_oldest_has_to_go(make_node):
    node = await make_node(max_connections_per_user=2)

    first, second, third = [await node.connect("ada") for _ in range(3)]
    await node.connect("bob")
    await settle()

    assert first.closed is DisconnectReason.REPLACED
    assert (second.closed, third.closed) == (None, None)


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

    node.intake.lost(link, DisconnectReason.CONNECTION_LOST)
    node.intake.received(link, b"{}", binary=False)
