"""From one connection to the next: connect, resume, serve, wait, and again.

Rules of this file:

1. The name of the old session is kept until the server has answered a resume of it;
   from then on it is the new connection's.
2. On a new connection nothing of the application's goes out before the resume is answered:
   first the requests that had no answer, under their ids, then the outbox.
3. Every task belongs to the one that runs ``run``, and ends with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final

from eyewall.application.logs import shown
from eyewall.application.ports import Logger
from eyewall.client.address import Address
from eyewall.client.backoff import Backoff
from eyewall.client.endings import Ending
from eyewall.client.link import Ended, Link, dial
from eyewall.client.outbox import Outbox
from eyewall.client.receive import Receiver
from eyewall.client.recover import Recovery
from eyewall.client.requests import Requests
from eyewall.client.rooms import Rooms
from eyewall.client.tokens import Pace, Tokens
from eyewall.domain.errors import ConnectionClosed, EyewallError, Refused, Unavailable

Tell = Callable[["State"], None]

SOONEST: Final = 15.0
"""Seconds between two renewals of a token in a connection, whatever its callback says of
its life."""

AGAIN: Final = 15.0
"""Seconds until the next try after a renewal that failed."""


class State(StrEnum):
    """Where a client is."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    """It comes back by itself, after ``Client.retry_in`` seconds."""
    CLOSED = "closed"
    """It stays away: closed by the application, or by the server for good."""


class Session:
    """Keeps a client connected."""

    def __init__(
        self,
        *,
        address: Address,
        tokens: Tokens,
        backoff: Backoff,
        rooms: Rooms[Any],
        requests: Requests,
        outbox: Outbox,
        receiver: Receiver,
        recovery: Recovery,
        logger: Logger,
        tell: Tell,
    ) -> None:
        self._address = address
        self._tokens = tokens
        self._backoff = backoff
        self._rooms = rooms
        self._requests = requests
        self._outbox = outbox
        self._receiver = receiver
        self._recovery = recovery
        self._logger = logger
        self._tell = tell
        self._name: str | None = None
        self.state = State.CONNECTING
        self.link: Link | None = None
        """The connection that is open, or the last that was."""
        self.retry_at = 0.0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done at the first opening; it has failed if that was refused."""

    def turn(self, state: State) -> None:
        """Go over to another state, and tell."""
        if state is not self.state:
            self.state = state
            self._outbox.moved()  # who waits for place has to know whether it is of use
            self._tell(state)

    # --- from one connection to the next

    async def run(self) -> None:
        """Connect, and come back as often as it is of use; ends in the state CLOSED."""
        ending = Ending(Unavailable("the client failed"))
        try:
            while True:
                self.turn(State.CONNECTING)
                ending = await self._once()
                if ending.stale:
                    self._tokens.refused()
                if self._is_over(ending):
                    return
                await self._wait(ending)
        finally:
            self.end(ending.error)

    def end(self, error: EyewallError) -> None:
        """Nothing comes any more: tell everybody who waits."""
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # it may be that nobody waits any more
        self._outbox.clear()
        self._requests.close(str(error))
        self._receiver.iterated.close()
        self.turn(State.CLOSED)

    def _is_over(self, ending: Ending) -> bool:
        """Whether it is of no use to come back, or not wanted (any more, or yet)."""
        never_open = not self.opened.done()
        return never_open or not ending.comes_back or self.state is State.CLOSED

    async def _once(self) -> Ending:
        """One connection, from the token to its end, whatever that is."""
        try:
            return await self._connection()
        except Exception as error:
            self._logger.error("connection_failed", exc_info=error)
            return Ending(Unavailable(f"the connection failed: {type(error).__name__}"))

    async def _connection(self) -> Ending:
        try:
            async with asyncio.timeout(self._address.timeout):
                token = await self._tokens.get()
        except TimeoutError:
            return Ending(Unavailable("the token callback took too long"))
        except Refused as error:
            return Ending(error, comes_back=False)
        except Exception as error:
            self._logger.error("token_failed", error=shown(error), exc_info=error)
            return Ending(Unavailable(f"the token callback failed: {type(error).__name__}"))
        if self.state is State.CLOSED:  # by the callback
            return Ending(ConnectionClosed("the client was closed"), comes_back=False)
        try:
            link = await dial(self._address, token)
        except Ended as ended:
            return self._another_token(ended.ending)
        began = time.monotonic()
        try:
            return await self._serve(link)
        finally:
            self._backoff.lasted(time.monotonic() - began)

    async def _serve(self, link: Link) -> Ending:
        """Use a connection until it ends; the tasks around it end with it."""
        self.link = link
        tasks = [
            asyncio.create_task(work, name=f"eyewall client {name}")
            for name, work in {
                "reader": link.run(lambda frame: self._receiver.received(link, frame)),
                "work": self._work(link),
            }.items()
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # Either the connection has ended, or it is of no use.
            return await _first(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._outbox.put_back(self._requests.unanswered())

    async def _work(self, link: Link) -> Ending:
        """Resume, open, and keep the connection whole."""
        try:
            if self._name is not None:
                await self._recovery.resume(link, self._name)
        except Ended as ended:
            return ended.ending
        self._name = link.session
        link.serve(self._outbox)
        self.turn(State.OPEN)
        if not self.opened.done():
            self.opened.set_result(None)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._recovery.mend(link))
            both.create_task(self._keep_token(link))
        raise AssertionError("both go on for as long as the connection")

    async def _keep_token(self, link: Link) -> None:
        """Show a new token before the old one ends."""
        pace = Pace(SOONEST, AGAIN)
        wait = self._tokens.renew_in()
        while wait is not None:
            await asyncio.sleep(wait)
            if await self._renew(link):
                left = self._tokens.renew_in()
                wait = None if left is None else pace.next(left)
            else:
                wait = pace.failed()
        await asyncio.Event().wait()  # nobody knows when: the server will say

    async def _renew(self, link: Link) -> bool:
        """Refresh in band; False if that failed. It is tried again until the server closes
        with 4401, and then with the next connection."""
        try:
            async with asyncio.timeout(self._address.timeout):
                data = {"token": await self._tokens.renew()}
                with self._requests.open("system:refresh", data, survives=False) as request:
                    link.post(request.frame)
                    await request.answer
        except Exception as error:  # noqa: BLE001  (the application's function)
            self._logger.warning("token_not_renewed", error=shown(error))
            self._tokens.refused()
            return False
        return True

    # --- between two

    def _another_token(self, refused: Ending) -> Ending:
        """A token that was kept may have ended early: one more try, with a new one."""
        if refused.stale and not refused.comes_back and self._tokens.was_kept:
            return replace(refused, comes_back=True)
        return refused

    async def _wait(self, ending: Ending) -> None:
        wait = self._backoff.next(random.random())  # noqa: S311  (a spread, not a secret)
        if ending.wait is not None:
            wait = ending.wait + (0.0 if ending.exact else wait)
        self.retry_at = time.monotonic() + wait
        self._logger.info("away", reason=str(ending.error), seconds=round(wait, 3))
        self.turn(State.WAITING)
        await asyncio.sleep(wait)


async def _first(tasks: list[asyncio.Task[Ending]]) -> Ending:
    """What the reader says, if it has ended, else what the other one does."""
    return await next(task for task in tasks if task.done())
