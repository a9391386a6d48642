"""Keeps a client connected: connect, resume, serve, wait, reconnect.

Rules of this file:

1. The name of the old session is kept until the server has answered its resume; from then
   on it is the new connection's.
2. A new connection sends no message of the application before its resume is answered. Then
   the unanswered requests are retransmitted under their ids, and the outbox follows.
3. All tasks are children of the one that runs ``run``, and end with it.
4. A client that was refused is CLOSED until it gets another token; then ``restart`` and
   ``run`` are called. Waiting messages and requests have failed by then.
5. A message of one user is never sent as another user: when the server welcomes the client as
   another user than before, messages and requests from before ``set_token`` fail.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger
from eyewall.client.address import Address
from eyewall.client.backoff import Backoff
from eyewall.client.link import Ended, Ending, Link, dial, is_refusal
from eyewall.client.outbox import Outbox
from eyewall.client.receiver import Receiver
from eyewall.client.recovery import Recovery
from eyewall.client.requests import Requests
from eyewall.client.rooms import RoomTracker
from eyewall.client.tokens import RenewalBackoff, Tokens
from eyewall.domain.errors import (
    ConnectionClosed,
    EyewallError,
    Forbidden,
    Unauthorized,
    Unavailable,
)

Tell = Callable[["State"], None]

MIN_RENEWAL_PAUSE: Final = 15.0
"""Seconds between two renewals of a token in a connection, however short its life is."""

RENEWAL_RETRY: Final = 15.0
"""Seconds until the next attempt after a failed renewal."""


class State(StrEnum):
    """The state of a client."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    """It reconnects by itself, after ``Client.retry_in`` seconds."""
    CLOSED = "closed"
    """It does not reconnect: closed by the application, or by the server for good. A client
    that was refused reconnects when it gets another token."""


def user_changed() -> ConnectionClosed:
    """The error of a message that was made for another user than the connected one."""
    return ConnectionClosed("the client is connected as another user now")


class Supervisor:
    """Makes one connection after the other, and retransmits on each what the last one left."""

    def __init__(
        self,
        *,
        address: Address,
        tokens: Tokens,
        backoff: Backoff,
        rooms: RoomTracker[Any],
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
        self._user: tuple[object, int] | None = None
        """The user of the last connection, and the generation of its token source; None
        before the first connection, and in the state CLOSED, in which no message waits."""
        self.min_generation = 0
        """Messages with a smaller ``Outgoing.generation`` belong to another user."""
        self.state = State.CONNECTING
        self.error: EyewallError | None = None
        """Why the client is not open; None while it is, and before the first connection."""
        self._state_changed = asyncio.Event()
        self.link: Link | None = None
        """The open connection, or the last one."""
        self.retry_at = 0.0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client is open for the first time; has the error if it can't be."""

    def set_state(self, state: State, error: EyewallError | None = None) -> None:
        """Change the state and notify; ``error`` says why the client is not open."""
        if state is State.OPEN or error is not None:
            self.error = error
        if state is not self.state:
            self.state = state
            self._outbox.notify_waiters()  # senders that wait for space check the state
            self._state_changed.set()
            self._state_changed.clear()
            self._tell(state)

    async def ready(self) -> None:
        """Return when the client is open; raises ``error`` if it is CLOSED."""
        while self.state in (State.CONNECTING, State.WAITING):
            await self._state_changed.wait()
        if self.state is State.CLOSED:
            assert self.error is not None
            raise self.error.with_traceback(None)

    @property
    def was_refused(self) -> bool:
        """Whether it is CLOSED because the server refused it."""
        return self.state is State.CLOSED and is_refusal(self.error)

    def restart(self) -> None:
        """Leave the state CLOSED after a refusal; ``run`` must follow."""
        self._receiver.iteration_queue.reopen()
        self.set_state(State.CONNECTING)

    # --- from one connection to the next

    async def run(self) -> None:
        """Connect and reconnect until it is of no use; ends in the state CLOSED."""
        ending = Ending(Unavailable("the client failed"))
        try:
            while True:
                self.set_state(State.CONNECTING)
                ending = await self._connect_once()
                if ending.stale:
                    self._tokens.discard()
                if self._is_final(ending):
                    return
                await self._wait(ending)
        finally:
            self.end(ending.error)

    def end(self, error: EyewallError) -> None:
        """Change to CLOSED; fails all waiting requests, and drops the outbox."""
        if self.state is State.CLOSED:
            return
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # marks it as retrieved: there may be no waiter
        self._user = None
        self._outbox.clear()
        self._requests.close(str(error), error)
        self._receiver.iteration_queue.close()
        self.set_state(State.CLOSED, error)

    def _is_final(self, ending: Ending) -> bool:
        """Return whether to end instead of reconnecting."""
        if self.state is State.CLOSED:
            return True
        if ending.is_refusal:
            return not self._tokens.has_alternative(ending.error, stale=ending.stale)
        never_open = not self.opened.done()
        return never_open or not ending.comes_back

    async def _connect_once(self) -> Ending:
        """Run one connection from the token to its end; never raises ``Exception``."""
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
        except (Unauthorized, Forbidden) as error:
            return Ending(error, comes_back=False)
        except Exception as error:
            self._logger.error("token_failed", error=shown(error), exc_info=error)
            return Ending(Unavailable(f"the token callback failed: {type(error).__name__}"))
        if self.state is State.CLOSED:  # by the callback
            return Ending(ConnectionClosed("the client was closed"), comes_back=False)
        generation = self._tokens.generation
        try:
            link = await dial(self._address, token)
        except Ended as ended:
            return ended.ending
        self._check_user(link.welcome.get("user_id"), generation)
        began = time.monotonic()
        try:
            return await self._serve(link)
        finally:
            self._backoff.record_uptime(time.monotonic() - began)

    def _check_user(self, user: object, generation: int) -> None:
        """If the server names another user than before, fail the messages of that one.

        If the token source is still the same, its callback has changed the user at a time
        that the client does not know: then all waiting messages fail.
        """
        last, self._user = self._user, (user, generation)
        if last is None or last[0] == user:
            return
        self.min_generation = generation
        if generation == last[1]:
            self.min_generation += 1
            self._user = (user, self._tokens.next_generation(generation))
        self._requests.fail_before(self.min_generation, user_changed)
        unsent = self._outbox.drop_before(self.min_generation)
        if unsent:
            self._logger.warning("not_sent", messages=unsent, reason="the user has changed")

    async def _serve(self, link: Link) -> Ending:
        """Use a connection until it ends; its tasks end with it."""
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
            # Either the connection has ended, or the resume has failed.
            return await _first(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._outbox.put_back(self._requests.unanswered())

    async def _work(self, link: Link) -> Ending:
        """Resume, change to OPEN, then fill gaps and renew the token."""
        try:
            if self._name is not None:
                await self._recovery.resume(link, self._name)
        except Ended as ended:
            return ended.ending
        self._name = link.session
        self._tokens.forget_refusal()
        link.serve(self._outbox)
        self.set_state(State.OPEN)
        if not self.opened.done():
            self.opened.set_result(None)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._recovery.fill_gaps(link))
            both.create_task(self._keep_token(link))
        raise AssertionError("both run as long as the connection")

    async def _keep_token(self, link: Link) -> None:
        """Send a new token before the old one ends, or when the application sets one.

        If the end is unknown, the server closes with 4401 at the end.
        """
        pace = RenewalBackoff(MIN_RENEWAL_PAUSE, RENEWAL_RETRY)
        wait = self._tokens.renew_in()
        while True:
            await self._tokens.wait_until_due(wait)
            is_renewed = await self._renew(link)
            left = self._tokens.renew_in()
            if is_renewed:
                wait = None if left is None else pace.next(left)
            else:
                wait = pace.failed() if self._tokens.is_callback else None

    async def _renew(self, link: Link) -> bool:
        """Send ``system:refresh``; False if that failed. It is tried again until the server
        closes with 4401, and then on the next connection."""
        try:
            async with asyncio.timeout(self._address.timeout):
                token = await self._tokens.renew()
                generation = self._tokens.generation
                if token is None:
                    return True  # no token: that counts on the next connection
                data = {"token": token}
                with self._requests.open("system:refresh", data, survives=False) as request:
                    link.post(request.frame)
                    await request.answer
        except Exception as error:  # noqa: BLE001  (the application's function)
            self._logger.warning("token_not_renewed", error=shown(error))
            self._tokens.discard()
            return False
        self._user = (link.welcome.get("user_id"), generation)
        return True

    # --- between two connections

    async def _wait(self, ending: Ending) -> None:
        wait = self._backoff.next(random.random())  # noqa: S311  (a spread, not a secret)
        if ending.wait is not None:
            wait = ending.wait + (0.0 if ending.exact else wait)
        self.retry_at = time.monotonic() + wait
        self._logger.info("away", reason=str(ending.error), seconds=round(wait, 3))
        self.set_state(State.WAITING, ending.error)
        await asyncio.sleep(wait)


async def _first(tasks: list[asyncio.Task[Ending]]) -> Ending:
    """Return the result of the first task of the list that is done."""
    return await next(task for task in tasks if task.done())
