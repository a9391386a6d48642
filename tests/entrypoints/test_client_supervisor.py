"""The Python client over many connections: which ends it comes back from, and how."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from websockets.exceptions import ConnectionClosed as SocketClosed

from eyewall import (
    AckTimeout,
    ConnectionClosed,
    ConnMeta,
    DisconnectReason,
    Forbidden,
    Overloaded,
    Server,
    Unauthorized,
    Unavailable,
)
from eyewall.client import State
from tests.entrypoints.client_support import RESUME, client, reopened, scripted, talking, through
from tests.entrypoints.wire import eventually, running, soon
from tests.faults.proxy import TcpProxy
from tests.ports import free_port

# --- refusals at the beginning


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (403, Forbidden), (503, Unavailable)]
)
async def test_entering_raises_what_it_is_refused_with(status, kind):
    async with scripted() as script:
        script.refusals.append((status, {}))
        c = client(script.url)
        with pytest.raises(kind):
            await soon(c.__aenter__())

    assert c.state is State.CLOSED


async def test_entering_where_nobody_is_raises():
    with pytest.raises(Unavailable):
        async with client(f"ws://127.0.0.1:{free_port()}/ws"):
            pass


async def test_entering_with_a_token_callback_that_fails_raises():
    def broken():
        raise OSError("s3cret")

    with pytest.raises(Unavailable, match="OSError") as raised:
        async with client("ws://127.0.0.1:1/ws", token=broken):
            pass
    assert "s3cret" not in str(raised.value)


async def test_a_token_callback_that_gives_up_is_believed():
    def gives_up():
        raise Unauthorized("logged out")

    with pytest.raises(Unauthorized, match="logged out"):
        async with client("ws://127.0.0.1:1/ws", token=gives_up):
            pass


async def test_a_token_callback_has_its_time():
    async def hangs():
        await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="too long"):
        async with client("ws://127.0.0.1:1/ws", token=hangs, connect_timeout=0.05):
            pass


async def test_entering_can_be_given_up():
    async with scripted() as script:
        script.welcome = None
        c = client(script.url)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(c.__aenter__(), 0.05)

        assert c.state is State.CLOSED


# --- coming back


@pytest.mark.parametrize("code", [1011, 1012, 1013, 4401, 4408, 4413])
async def test_it_comes_back_after(code):
    async with talking() as (script, c, line):
        states = []
        c.on_state(states.append)
        await line.close(code)
        await (await script.line()).resumed()
        await reopened(c, "s1")

        await eventually(lambda: len(states) == 3)
        assert states == [State.WAITING, State.CONNECTING, State.OPEN]


@pytest.mark.parametrize("code", [1000, 1002, 1008, 4501, 4503])
async def test_it_stays_away_after(code):
    async with talking() as (script, c, line):
        pending = asyncio.ensure_future(c.request("t"))
        await line.expect("t")
        await line.close(code, "because")

        with pytest.raises(ConnectionClosed, match=str(code)):
            await soon(pending)
        assert c.state is State.CLOSED
        with pytest.raises(ConnectionClosed):
            await c.send("t")
        assert [message async for message in c] == []
        assert len(script.requests) == 1


async def test_a_real_server_that_disconnects_is_believed():
    async with running() as server, client(server.url) as c:
        await server.hub.disconnect_conn(c.conn_id, DisconnectReason.DISCONNECTED)

        await eventually(lambda: c.state is State.CLOSED)
        assert "4503" in str(c.last_error)


async def test_it_comes_back_when_another_server_does():
    port = free_port()
    with TcpProxy("127.0.0.1", port) as proxy:
        server, again = Server(), Server()
        await server.start(port=port)
        async with client(through(proxy)) as c:
            before = c.conn_id
            proxy.refuse()
            proxy.cut()
            await eventually(lambda: c.state is State.WAITING)
            await server.shutdown(timeout=1)
            again.handle("late", lambda ctx, msg: {"ok": True})
            await again.start(port=port)
            proxy.resume()

            assert (await c.request("late", timeout=30))["ok"]
            assert c.conn_id != before
        await again.shutdown(timeout=1)


async def test_a_drain_says_when_to_come_back():
    async with talking() as (_, c, line):
        await line.send("system:draining", {"reconnect_in": 600.0}, event="draining")
        await line.close(1012)
        await eventually(lambda: c.state is State.WAITING)

        assert c.retry_in is not None
        assert 300 < c.retry_in <= 600, "exactly that, without the back-off"


async def test_after_a_drain_it_comes_back():
    async with talking() as (script, c, line):
        await line.send("system:draining", {"reconnect_in": 0.02}, event="draining")
        await line.close(1012)
        await (await script.line()).resumed()
        await reopened(c, "s1")

        assert c.retry_in is None


async def test_what_is_sent_while_the_server_drains_goes_to_the_next_one():
    """The draining one refuses all that is new, also what was written before its notice."""
    async with talking() as (script, c, line):
        before = asyncio.ensure_future(c.request("before"))
        refused = await line.expect("before")
        await line.send("system:draining", {"reconnect_in": 0.02}, event="draining")
        await line.refuse(refused, "overloaded", retry_after=1.0)
        await line.send("news", 1)
        await soon(anext(c))
        await c.send("said")
        asked = asyncio.ensure_future(c.request("asked"))
        await asyncio.sleep(0)
        await line.close(1012)
        with pytest.raises(SocketClosed):
            await line.receive()

        after = await script.line()
        await after.resumed()
        found = [await after.receive() for _ in range(3)]
        assert [message["topic"] for message in found] == ["before", "said", "asked"]
        assert found[0]["id"] == refused["id"]
        await after.answer(found[0])
        await after.answer(found[2])
        await soon(asyncio.gather(before, asked))


async def test_overloaded_is_an_answer_where_the_server_does_not_drain():
    async with talking() as (_, c, line):
        asked = asyncio.ensure_future(c.request("asked"))
        await line.refuse(await line.expect("asked"), "overloaded", retry_after=1.0)

        with pytest.raises(Overloaded):
            await soon(asked)


async def test_a_busy_server_says_when_to_come_back():
    async with talking() as (script, c, first):
        script.refusals.append((503, {"Retry-After": "600"}))
        first.cut()
        await eventually(lambda: c.state is State.WAITING and len(script.requests) == 2)

        assert c.retry_in is not None
        assert c.retry_in > 300


async def test_after_a_refusal_with_503_it_comes_back():
    async with talking() as (script, c, first):
        script.refusals.append((503, {"Retry-After": "0"}))
        first.cut()
        await (await script.line()).resumed()
        await reopened(c, "s1")

        assert len(script.requests) == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_who_is_refused_later_stays_away(status):
    async with talking() as (script, c, line):
        script.refusals.append((status, {}))
        line.cut()

        await eventually(lambda: c.state is State.CLOSED)
        with pytest.raises(ConnectionClosed):
            await c.request("t")


async def test_a_dead_line_is_left_for_another():
    async with running() as server:
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy), heartbeat=0.2, connect_timeout=0.3) as c:
                before = c.conn_id
                proxy.stall()
                await eventually(lambda: c.state is not State.OPEN)
                proxy.resume()

                await reopened(c, before)


# --- what waited


async def test_requests_without_an_answer_go_first_and_then_the_outbox_in_order():
    async with talking() as (script, c, line_before):
        line = line_before
        first = asyncio.ensure_future(c.request("t", "first"))
        second = asyncio.ensure_future(c.request("t", "second"))
        before = [await line.receive(), await line.receive()]
        line.cut()
        await eventually(lambda: c.state is not State.OPEN)
        for number in range(3):
            await c.send("t", number)
        third = asyncio.ensure_future(c.request("t", "third"))
        line = await script.line()
        request = await line.expect(RESUME)
        await line.answer(request, rooms={})
        after = [await line.receive() for _ in range(6)]

        assert after[:2] == before, "under the same ids"
        assert [message["data"] for message in after[2:]] == [0, 1, 2, "third"]
        for message in (after[0], after[1], after[5]):
            await line.answer(message, data=message["data"])
        answers = [(await soon(task))["data"] for task in (first, second, third)]
        assert answers == ["first", "second", "third"]


async def test_nothing_goes_out_before_the_resume_is_answered():
    async with talking() as (script, c, first):
        line = first
        line.cut()
        await eventually(lambda: c.state is not State.OPEN)
        await c.send("t", 1)
        line = await script.line()
        request = await line.expect(RESUME)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.socket.recv(), 0.05)
        await line.answer(request, rooms={})

        assert (await line.receive())["data"] == 1


async def test_a_request_that_is_given_up_while_away_is_not_sent():
    async with talking() as (script, c, first):
        line = first
        script.refusals.extend([(503, {})] * 3)
        line.cut()
        await eventually(lambda: c.state is not State.OPEN)
        with pytest.raises(AckTimeout):
            await c.request("t", "given up", timeout=0.01)
        await c.send("t", "wanted")
        line = await script.line()
        await line.resumed()

        assert (await line.receive())["data"] == "wanted"


async def test_the_outbox_is_bounded_while_away():
    async with talking(outbox=3) as (script, c, line):
        script.refusals.extend([(503, {"Retry-After": "60"})])
        line.cut()
        await eventually(lambda: len(script.requests) == 2 and c.state is State.WAITING)
        for number in range(3):
            await c.send("t", number)

        with pytest.raises(Overloaded):
            await c.send("t", 3)
        with pytest.raises(Overloaded):
            await c.request("t", 4)


async def test_a_request_is_handled_once_when_the_line_is_cut_before_its_answer():
    """The server goes on with the old session's memory, if it is resumed."""
    server = Server()
    calls: list = []
    begun, go = asyncio.Event(), asyncio.Event()

    @server.on("order")
    async def order(ctx, msg):
        calls.append(ctx.conn.id)
        begun.set()
        await go.wait()
        return {"call": len(calls)}

    async with running(server):
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy)) as c:
                before = c.conn_id
                ordering = asyncio.ensure_future(c.request("order", timeout=20))
                await soon(begun.wait())
                proxy.cut()
                await reopened(c, before)
                go.set()

                assert (await soon(ordering))["call"] == 1
    assert calls == [before]


async def test_a_join_that_is_under_way_at_a_cut_is_one_on_the_next_connection():
    """Not answered with what the old one was told: that it is closed."""
    begun, go = asyncio.Event(), asyncio.Event()

    class Slow:
        def can_publish(self, meta, topic, event):
            return True

        async def can_subscribe(self, meta, room_id):
            begun.set()
            await go.wait()
            return True

    async with running(client_commands=True, access_controller=Slow()) as server:
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy)) as c:
                before = c.conn_id
                joining = asyncio.ensure_future(c.join("r", timeout=20))
                await soon(begun.wait())
                proxy.cut()
                await reopened(c, before)
                go.set()

                assert (await soon(joining))["room"] == "r"
                (connection,) = server.hub.connections()
                assert (connection.rooms, c.rooms) == ({"r"}, {"r"})


async def test_the_outbox_arrives_in_order_at_a_real_server():
    server = Server()
    came: list = []
    server.handle("t", lambda ctx, msg: came.append(msg.data))
    async with running(server):
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy)) as c:
                proxy.refuse()
                proxy.cut()
                await eventually(lambda: c.state is not State.OPEN)
                for number in range(20):
                    await c.send("t", number)
                proxy.resume()

                await eventually(lambda: len(came) == 20)
    assert came == list(range(20))


# --- tokens


class Login:
    """Gives tokens, and lets those in that it gave."""

    def __init__(self, life: float | None = None) -> None:
        self.life = life
        self.given: list[str] = []
        self.expires_in: float | None = None

    async def token(self):
        self.given.append(f"t{len(self.given) + 1}")
        if self.expires_in is None:
            return self.given[-1]
        return {"token": self.given[-1], "expires_in": self.expires_in}

    def authenticate(self, handshake):
        shown = handshake.headers.get("authorization", "").removeprefix("Bearer ")
        if shown not in self.given:
            return None
        end = None
        if self.life is not None:
            end = datetime.now(UTC) + timedelta(seconds=self.life)
        return ConnMeta(user_id="ada", expires_at=end)


async def test_an_expired_token_is_replaced_by_the_callback():
    login = Login(life=0.2)
    async with (
        running(authenticator=login.authenticate) as server,
        client(server.url, token=login.token) as c,
    ):
        before = c.conn_id
        login.life = None
        await reopened(c, before)

    assert login.given == ["t1", "t2"]


async def test_a_token_is_renewed_in_band_before_it_ends(monkeypatch):
    monkeypatch.setattr("eyewall.client.supervisor.MIN_RENEWAL_PAUSE", 0.05)
    login = Login(life=60)
    login.expires_in = 0.1
    async with (
        running(authenticator=login.authenticate) as server,
        client(server.url, token=login.token) as c,
    ):
        before = c.conn_id
        await eventually(lambda: len(login.given) >= 3)

        assert c.conn_id == before
        assert c.state is State.OPEN


async def test_a_renewal_that_fails_leaves_it_to_the_server(monkeypatch):
    monkeypatch.setattr("eyewall.client.supervisor.MIN_RENEWAL_PAUSE", 0.01)
    given: list = []

    def token():
        given.append(1)
        if len(given) == 2:
            raise OSError("no login")
        return {"token": "t", "expires_in": 0.1}

    async with talking(token=token) as (script, c, line):
        await eventually(lambda: len(given) == 2)
        assert c.state is State.OPEN
        await line.close(4401)
        await (await script.line()).resumed()

        assert len(given) >= 3


async def test_a_clock_that_is_ahead_asks_for_no_token_before_the_server_says_so():
    """The end of each token has passed by this machine's clock when it comes."""
    given: list = []

    def token():
        given.append(f"t{len(given) + 1}")
        return {"token": given[-1], "expires_at": datetime.now(UTC) - timedelta(hours=1)}

    async with talking(token=token) as (script, c, line):
        assert c._engine._tokens.renew_in() is None
        await line.close(4401)
        await (await script.line()).resumed()
        await reopened(c, "s1")

    assert given == ["t1", "t2"]


async def test_a_renewal_that_fails_is_tried_again(monkeypatch):
    monkeypatch.setattr("eyewall.client.supervisor.RENEWAL_RETRY", 0.01)
    given: list = []

    async def token():
        given.append(1)
        if len(given) == 2:
            raise asyncio.CancelledError
        if len(given) == 3:
            raise OSError("no login")
        return {"token": f"t{len(given)}", "expires_in": 0.1 if len(given) < 4 else 1000}

    async with talking(token=token) as (_, c, line):
        refresh = await line.expect("system:refresh")
        await line.answer(refresh)

        assert refresh["data"] == {"token": "t4"}
        assert c.state is State.OPEN


async def test_a_token_that_was_kept_and_is_refused_is_tried_once_more_anew():
    given: list = []

    def token():
        given.append(f"t{len(given) + 1}")
        return {"token": given[-1], "expires_in": 1000}

    async with talking(token=token) as (script, c, line):
        script.refusals.append((401, {}))
        line.cut()
        await (await script.line()).resumed()
        await reopened(c, "s1")

    shown = [request.headers["Authorization"] for request in script.requests]
    assert shown == ["Bearer t1", "Bearer t1", "Bearer t2"]


async def test_a_token_in_the_address_is_not_shown():
    async with scripted() as script, client(script.url + "?token=s3cret") as c:
        assert "s3cret" not in repr(c)
