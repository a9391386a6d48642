"""The Python client tells "not let in" from "no network", and waits for another token."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall import (
    AckTimeout,
    ConnectionClosed,
    ConnMeta,
    Forbidden,
    Misuse,
    Nacked,
    RateLimited,
    Server,
    Unauthorized,
    Unavailable,
)
from eyewall.client import State
from eyewall.client.requests import MAX_IN_FLIGHT
from tests.entrypoints.client_support import (
    Script,
    client,
    reopened,
    scripted,
    talking,
    through,
)
from tests.entrypoints.wire import eventually, running, soon
from tests.faults.proxy import TcpProxy


def turn_away(script: Script, times: int = 1) -> None:
    """Close the next connections with 4504 before the welcome, as a server does that refuses
    by a close."""
    left = iter(range(times))

    async def close(socket) -> None:
        if next(left, None) is not None:
            await socket.close(4504, "auth_failed")
            await socket.send("")  # raises: it ends here

    script.before_welcome = close


def shown(script: Script) -> list[str]:
    """The tokens that clients came with."""
    return [request.headers["Authorization"].split()[1] for request in script.requests]


@contextlib.asynccontextmanager
async def refused_later(**options):
    """A client that was open, was cut off, and is not let in any more."""
    async with talking(**options) as (script, c, line):
        turn_away(script)
        line.cut()
        await eventually(lambda: c.state is State.CLOSED)
        yield script, c


# --- at the beginning


async def test_entering_raises_unauthorized_after_4504_and_does_not_try_again():
    async with scripted() as script:
        turn_away(script)
        c = client(script.url, token="bad")
        with pytest.raises(Unauthorized, match="4504 auth_failed"):
            await soon(c.__aenter__())

        assert c.state is State.CLOSED
        assert isinstance(c.last_error, Unauthorized)
        with pytest.raises(ConnectionClosed):
            c.set_token("new")
    assert len(script.requests) == 1


async def test_a_callback_is_asked_once_more_and_what_it_gives_is_tried():
    tokens = iter(["old", "new", "never"])
    async with scripted() as script:
        turn_away(script)
        async with client(script.url, token=lambda: next(tokens)) as c:
            assert c.state is State.OPEN

    assert shown(script) == ["old", "new"]


async def test_once_more_is_once():
    tokens = iter(["one", "two", "three"])
    async with scripted() as script:
        turn_away(script, times=3)
        with pytest.raises(Unauthorized, match="4504"):
            await soon(client(script.url, token=lambda: next(tokens)).__aenter__())

    assert shown(script) == ["one", "two"]


async def test_what_was_refused_is_not_shown_again():
    async with scripted() as script:
        script.refusals.append((401, {}))
        with pytest.raises(Unauthorized, match="401"):
            await soon(client(script.url, token=lambda: "t").__aenter__())

    assert shown(script) == ["t"]


async def test_once_more_is_once_for_each_time_that_it_was_let_in():
    given: list[str] = []

    def token() -> str:
        given.append(f"t{len(given) + 1}")
        return given[-1]

    async with talking(token=token) as (script, c, first):
        line = first
        for _ in range(2):
            before = c.conn_id
            script.refusals.append((401, {}))
            line.cut()
            line = await script.line()
            await line.resumed()
            await reopened(c, before)

    assert shown(script) == ["t1", "t2", "t3", "t4", "t5"]


# --- later


async def test_who_is_not_let_in_any_more_stays_away_and_says_why():
    states = []
    async with talking(token="t") as (script, c, line):
        assert c.last_error is None
        c.on_state(lambda state: states.append((state, type(c.last_error))))
        turn_away(script)
        line.cut()
        await eventually(lambda: (State.CLOSED, Unauthorized) in states)

        with pytest.raises(Unauthorized, match="4504"):
            await c.ready()
        with pytest.raises(ConnectionClosed, match="4504") as raised:
            await c.send("t")
        assert raised.value.__cause__ is c.last_error
        assert [message async for message in c] == []
        assert len(script.requests) == 2


async def test_no_network_is_another_thing():
    async with running() as server:
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy)) as c:
                proxy.refuse()
                proxy.cut()
                await eventually(lambda: isinstance(c.last_error, Unavailable))
                assert c.state is not State.CLOSED
                ready = asyncio.ensure_future(c.ready())
                proxy.resume()
                await soon(ready)

                assert (c.state, c.last_error) == (State.OPEN, None)


async def test_what_waits_fails_and_does_not_go_out_under_another_s_name():
    async with talking(token="ada") as (script, c, line):
        turn_away(script)
        asked = asyncio.ensure_future(c.request("ask", "ada's", timeout=60))
        await line.expect("ask")
        line.cut()
        await eventually(lambda: c.state is not State.OPEN)
        waits = asyncio.ensure_future(c.request("ask", "ada's, too", timeout=60))
        await c.send("say", "ada's")
        for request in (asked, waits):
            with pytest.raises(ConnectionClosed, match="4504") as raised:
                await soon(request)
            assert isinstance(raised.value.__cause__, Unauthorized)
        c.set_token("ben")
        await (line := await script.line()).resumed()
        await c.send("say", "ben's")

        assert (await line.receive())["data"] == "ben's"


async def test_what_waits_for_its_turn_fails_as_well():
    """More requests than may be open: the rest finds the next user's connection."""
    async with talking(token="ada") as (script, c, line):
        asked = [
            asyncio.ensure_future(c.request("do", n, timeout=60)) for n in range(MAX_IN_FLIGHT + 2)
        ]
        for _ in range(MAX_IN_FLIGHT):
            await line.expect("do")

        @c.on_state
        def log_in(state: State) -> None:
            if state is State.CLOSED:
                c.set_token("ben")

        turn_away(script)
        line.cut()
        later = await script.line()
        await later.resumed()
        await soon(c.ready())
        await c.send("ben:says")
        await later.expect("ben:says")
        failed = await soon(asyncio.gather(*asked, return_exceptions=True))

    assert {type(error) for error in failed} == {ConnectionClosed}
    assert {type(error.__cause__) for error in failed} == {Unauthorized}


@pytest.mark.parametrize("wait", [None, "token"])
async def test_another_token_brings_it_back_with_its_rooms(wait):
    async with talking(token="t1") as (script, c, first):
        line = first
        joining = asyncio.ensure_future(c.join("r"))
        await line.answer(await line.expect("system:join"), room="r")
        await soon(joining)
        script.refusals.append((401, {}))
        line.cut()
        await eventually(lambda: c.state is State.CLOSED)
        again = "t2" if wait is None else (lambda: {"token": "t2", "expires_in": 1000})
        c.set_token(again)
        assert c.state is State.CONNECTING
        line = await script.line()
        assert await line.resumed(r={"recovered": False}) == {"session": "s1", "rooms": {"r": {}}}
        await soon(c.ready())
        await line.send("news", 7)

        message = await soon(anext(aiter(c)))
        assert message.data == 7, "the iteration goes on"
        assert c.rooms == {"r"}
    assert shown(script) == ["t1", "t1", "t2"]


async def test_a_callback_for_the_state_may_log_in():
    async with talking(token="old") as (script, c, line):

        @c.on_state
        def log_in(state: State) -> None:
            if state is State.CLOSED and isinstance(c.last_error, Unauthorized):
                c.set_token("new")

        turn_away(script)
        line.cut()
        await (await script.line()).resumed()
        await reopened(c, "s1")

    assert shown(script) == ["old", "old", "new"]


async def test_a_token_that_is_refused_as_well_leaves_it_away():
    async with refused_later(token="t1") as (script, c):
        for number in range(2):
            turn_away(script)
            c.set_token(f"t{number + 2}")
            with pytest.raises(Unauthorized):
                await soon(c.ready())

    assert shown(script) == ["t1", "t1", "t2", "t3"]


async def test_a_token_that_comes_while_an_older_one_is_refused_is_not_too_late():
    async with talking(token="old") as (script, c, line):

        async def close(socket) -> None:
            script.before_welcome = None
            c.set_token("new")
            await socket.close(4504, "auth_failed")
            await socket.send("")

        script.before_welcome = close
        line.cut()
        await (await script.line()).resumed()
        await reopened(c, "s1")

    assert shown(script) == ["old", "old", "new"]


async def test_a_source_that_is_set_while_another_is_asked_has_the_last_word():
    asked = asyncio.Event()

    async def hangs() -> str:
        asked.set()
        await go_on.wait()
        return "slow"

    go_on = asyncio.Event()
    async with refused_later(token="old") as (script, c):
        c.set_token(hangs)
        await soon(asked.wait())
        c.set_token("new")
        go_on.set()
        await (await script.line()).resumed()
        await soon(c.ready())

    assert shown(script)[2:] == ["new"]


@pytest.mark.parametrize(
    "error", [AckTimeout("no answer to ticket"), RateLimited(0.1), Nacked("not now")], ids=repr
)
async def test_a_callback_that_is_refused_by_somebody_else_is_asked_again(error):
    """It asked another server for the token, say: nobody has refused this client yet."""
    raised = [error, error]

    def token() -> str:
        if asked and raised:
            raise raised.pop()
        asked.append(1)
        return "t"

    asked: list[int] = []
    async with talking(token=token) as (script, c, line):
        line.cut()
        await (await script.line()).resumed()
        await soon(c.ready())

    assert raised == []


async def test_a_callback_that_gives_up_is_no_end_for_another_token():
    def token() -> str:
        if given:
            raise Unauthorized("log in again")
        given.append("t1")
        return "t1"

    given: list[str] = []
    async with talking(token=token) as (script, c, line):
        line.cut()
        await eventually(lambda: c.state is State.CLOSED)
        assert str(c.last_error) == "log in again"
        c.set_token("t2")
        await (await script.line()).resumed()
        await soon(c.ready())

    assert shown(script) == ["t1", "t2"]


@pytest.mark.parametrize("code", [1008, 4501, 4503])
async def test_a_close_for_good_is_none_that_a_token_helps(code):
    async with talking(token="t1") as (script, c, line):
        await line.close(code, "because")
        await eventually(lambda: c.state is State.CLOSED)
        with pytest.raises(ConnectionClosed, match=f"{code} because"):
            await soon(c.ready())
        c.set_token("t2")

        assert c.state is State.CLOSED
        assert isinstance(c.last_error, ConnectionClosed)
    assert len(script.requests) == 1


async def test_who_may_not_come_in_is_told_that():
    async with talking() as (script, c, line):
        script.refusals.append((403, {}))
        line.cut()
        await eventually(lambda: c.state is State.CLOSED)
        with pytest.raises(Forbidden):
            await c.ready()


async def test_closing_is_no_refusal():
    async with running() as server:
        async with client(server.url) as c:
            await c.ready()
        with pytest.raises(ConnectionClosed, match="closed"):
            await c.ready()
        with pytest.raises(ConnectionClosed):
            c.set_token("t")
    with pytest.raises(Misuse):
        await client("ws://127.0.0.1:1/ws").ready()


async def test_a_token_may_be_given_before_it_is_shown():
    async with scripted() as script:
        c = client(script.url)
        c.set_token(" t\n")
        async with c:
            with pytest.raises(ValueError, match="token") as raised:
                c.set_token("s3\ncret")

    assert "s3" not in str(raised.value)
    assert shown(script) == ["t"]


# --- while it is open


class Doorman:
    """Lets those in that come with ``good`` or ``better``; both are ada's."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.users = {"good": "ada", "better": "ada", "bens": "ben"}

    def authenticate(self, handshake):
        shown = handshake.headers.get("authorization", "").removeprefix("Bearer ")
        self.seen.append(shown)
        found = self.users.get(shown)
        return None if found is None else ConnMeta(user_id=found)


async def test_a_new_token_is_shown_in_the_connection_that_is_there():
    doorman = Doorman()
    async with (
        running(authenticator=doorman.authenticate) as server,
        client(server.url, token="good") as c,
    ):
        before = c.conn_id
        c.set_token("better")
        await eventually(lambda: doorman.seen == ["good", "better"])
        c.set_token(None)
        c.set_token(lambda: {"token": "good", "expires_in": 1000})
        await eventually(lambda: doorman.seen == ["good", "better", "good"])

        assert (c.conn_id, c.state) == (before, State.OPEN)


async def test_another_user_s_token_counts_from_the_next_connection_on():
    doorman = Doorman()
    server = Server(authenticator=doorman.authenticate)
    async with running(server):
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy), token="good") as c:
                before = c.conn_id
                c.set_token("bens")
                await eventually(lambda: doorman.seen == ["good", "bens"])
                assert c.welcome["user_id"] == "ada"
                proxy.cut()
                await reopened(c, before)

                assert c.welcome["user_id"] == "ben"


async def test_a_callback_that_fails_there_is_asked_again_after_a_while_only():
    """Not at once, and again and again."""
    asked: list[int] = []

    def broken() -> str:
        asked.append(1)
        raise OSError("no login")

    async with talking(token="t") as (_, c, line):
        c.set_token(broken)
        await eventually(lambda: bool(asked))
        resumed = asyncio.ensure_future(c.request("t"))
        await line.answer(await line.expect("t"))
        await soon(resumed)

    assert len(asked) == 1


# --- with a real server, in each of its ways


@pytest.mark.parametrize("how", ["http", "close"])
async def test_a_real_server_is_understood_whichever_way_it_refuses(how):
    doorman = Doorman()
    server = Server(authenticator=doorman.authenticate, refuse_with=how)
    async with running(server):
        with pytest.raises(Unauthorized):
            await soon(client(server.url, token="wrong").__aenter__())
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy), token="good") as c:
                doorman.users.pop("good")
                proxy.cut()
                await eventually(lambda: c.state is State.CLOSED)
                assert isinstance(c.last_error, Unauthorized)
                c.set_token("better")
                await soon(c.ready())

                assert c.welcome["user_id"] == "ada"
    assert doorman.seen == ["wrong", "good", "good", "better"]
