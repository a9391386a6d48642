"""A message of one user is never sent as another user."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall import ConnectionClosed
from eyewall.client import State
from eyewall.client.requests import MAX_IN_FLIGHT
from tests.application.fakes import RecordingLogger
from tests.entrypoints.client_support import client, scripted
from tests.entrypoints.wire import eventually, soon


class Away:
    """A client of ada's that was cut off: one request has no answer, and two messages wait."""

    def __init__(self, script, c, logger) -> None:
        self.script, self.c, self.logger = script, c, logger
        self.asked = self.waiting = None

    async def begin(self, line) -> None:
        self.asked = asyncio.ensure_future(self.c.request("asked", timeout=100))
        await line.expect("asked")
        self.script.lets_in = lambda _: False
        line.cut()
        await eventually(lambda: self.c.state is not State.OPEN)
        await self.c.send("said")
        self.waiting = asyncio.ensure_future(self.c.request("waiting", timeout=100))
        await asyncio.sleep(0)

    async def back(self, user, token=None):
        """Let the client in as this user, when it shows the token."""
        self.script.welcome = {"user_id": user}
        self.script.lets_in = lambda request: (
            token is None or request.headers["Authorization"] == f"Bearer {token}"
        )
        line = await self.script.line()
        await line.resumed()
        return line


@contextlib.asynccontextmanager
async def away(token, **options):
    logger = RecordingLogger()
    async with scripted() as script:
        script.welcome = {"user_id": "ada"}
        async with client(script.url, token=token, logger=logger, **options) as c:
            found = Away(script, c, logger)
            await found.begin(await script.line())
            yield found


async def is_another_user(*failed):
    for each in failed:
        with pytest.raises(ConnectionClosed, match="another user"):
            await soon(each)


async def test_what_was_said_before_the_token_of_another_user_was_set_fails():
    async with away("adas") as a:
        a.c.set_token("bobs")
        await a.c.send("bob said")
        answer = asyncio.ensure_future(a.c.request("bob asks"))
        await asyncio.sleep(0)
        line = await a.back("bob", "bobs")

        await line.expect("bob said")
        await line.answer(await line.expect("bob asks"))
        await soon(answer)
        await is_another_user(a.asked, a.waiting)
        assert a.logger.fields("not_sent")["messages"] == 1


async def test_a_new_token_of_the_same_user_lets_it_go_out():
    async with away("t1") as a:
        a.c.set_token("t2")
        line = await a.back("ada", "t2")

        for topic in ("asked", "said", "waiting"):
            request = await line.expect(topic)
            if topic != "said":
                await line.answer(request)
        await soon(asyncio.gather(a.asked, a.waiting))


async def test_where_a_callback_changes_the_user_all_that_waits_fails_each_time():
    async with away(lambda: "whoever") as a:
        line = await a.back("bob")
        for user in ("cleo", "ada"):
            now = asyncio.ensure_future(a.c.request("now"))
            await line.answer(await line.expect("now"))
            await soon(now)
            pending = asyncio.ensure_future(a.c.request("pending", timeout=100))
            await line.expect("pending")
            line.cut()
            line = await a.back(user)
            await is_another_user(pending)
        await is_another_user(a.asked, a.waiting)


async def test_a_request_that_waits_for_its_turn_keeps_its_user():
    async with away("adas", outbox=2 * MAX_IN_FLIGHT) as a:
        many = [
            asyncio.ensure_future(a.c.request("many", timeout=100)) for _ in range(MAX_IN_FLIGHT)
        ]
        await asyncio.sleep(0)
        a.c.set_token("bobs")
        line = await a.back("bob", "bobs")
        await is_another_user(a.asked, a.waiting, *many)
        now = asyncio.ensure_future(a.c.request("now"))

        await line.answer(await line.expect("now"))
        await soon(now)


async def test_a_token_that_was_renewed_in_the_connection_counts_as_its_own():
    """Else a callback that changes the user later would be taken for it."""
    async with scripted() as script:
        script.welcome = {"user_id": "ada"}
        async with client(script.url, token="adas") as c:
            line = await script.line()
            c.set_token(lambda: "whoever")
            await line.answer(await line.expect("system:refresh"))
            pending = asyncio.ensure_future(c.request("pending", timeout=100))
            await line.expect("pending")
            script.welcome = {"user_id": "bob"}
            line.cut()
            await (await script.line()).resumed()

            await is_another_user(pending)


async def test_after_a_refusal_what_is_said_goes_out_as_whoever_comes():
    async with scripted() as script:
        script.welcome = {"user_id": "ada"}
        async with client(script.url, token="adas") as c:
            line = await script.line()
            script.refusals.append((401, {}))
            line.cut()
            await eventually(lambda: c.state is State.CLOSED)
            script.welcome = {"user_id": "bob"}
            c.set_token(lambda: "bobs")
            await c.send("bob said")
            line = await script.line()
            await line.resumed()

            await line.expect("bob said")
            assert (c.state, c.last_error) == (State.OPEN, None)
