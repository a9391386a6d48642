"""The parts of a client, composed: its start, its sends, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from eyewall.application.concurrency.stalls import has_come
from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.ports.plugins import Logger
from eyewall.client import wire
from eyewall.client.address import Address
from eyewall.client.backoff import Backoff
from eyewall.client.callbacks import Notifier
from eyewall.client.link import CLOSE_TIMEOUT
from eyewall.client.outbox import Outbox, Outgoing
from eyewall.client.receiver import Incoming, Receiver
from eyewall.client.recovery import Recovery
from eyewall.client.requests import DeferredData, OnAnswer, Requests
from eyewall.client.rooms import RoomTracker
from eyewall.client.supervisor import State, Supervisor, user_changed
from eyewall.client.tokens import Tokens, TokenSource
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    InvalidEnvelope,
    Misuse,
    NotAMember,
    Overloaded,
)
from eyewall.domain.history import Since


class Engine:
    """Runs a client. It owns its tasks, and ends them in ``close``."""

    def __init__(
        self,
        *,
        address: Address,
        token: TokenSource | None,
        backoff: Backoff,
        outbox: int,
        queue: int,
        logger: Logger,
    ) -> None:
        self._address = address
        self._backoff = backoff
        self._tokens = Tokens(token, now=time.monotonic, wall=time.time)
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._outbox = Outbox(outbox)
        self._requests = Requests()
        self._notifier = Notifier(logger)
        self.on_state: list[Callable[[State], Any]] = []
        self.on_lost: list[Callable[[str, str | None], Any]] = []
        self.rooms: RoomTracker[Incoming] = RoomTracker()
        self._recovery = Recovery(
            rooms=self.rooms,
            requests=self._requests,
            take=lambda incoming: self.receiver.take(incoming),
            lost=self._tell_lost,
        )
        self.receiver = Receiver(
            rooms=self.rooms,
            requests=self._requests,
            logger=logger,
            queue=queue,
            gap_found=self._recovery.check_gaps,
            lost=self._tell_lost,
        )
        self.supervisor: Supervisor | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._callbacks: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def state(self) -> State:
        if self.supervisor is not None:
            return self.supervisor.state
        return State.CLOSED if self._closing else State.CONNECTING

    def _tell_state(self, state: State) -> None:
        self._notifier.tell(self.on_state, state)

    def _tell_lost(self, room: str, code: str | None) -> None:
        self._notifier.tell(self.on_lost, room, code)

    # --- beginning and end

    async def start(self) -> None:
        """Connect; returns when the connection is open, raises why it could not be opened."""
        if self.supervisor is not None or self._closing:
            raise Misuse("a client is entered once")
        self.supervisor = Supervisor(
            address=self._address,
            tokens=self._tokens,
            backoff=self._backoff,
            rooms=self.rooms,
            requests=self._requests,
            outbox=self._outbox,
            receiver=self.receiver,
            recovery=self._recovery,
            logger=self._logger,
            tell=self._tell_state,
        )
        self._start_connecting(self.supervisor)
        self._tasks.spawn(self._notifier.run(), "eyewall client notices")
        self._callbacks = self._tasks.spawn(self.receiver.run(), "eyewall client callbacks")
        try:
            await asyncio.shield(self.supervisor.opened)
        except BaseException:
            await self.close()
            raise

    def _start_connecting(self, supervisor: Supervisor) -> None:
        self._connecting = self._tasks.spawn(supervisor.run(), "eyewall client")

    async def ready(self) -> None:
        """See ``Client.ready``."""
        if self.supervisor is None:
            raise Misuse("a client is entered first: async with Client(...)")
        await self.supervisor.ready()

    def set_token(self, source: TokenSource | None) -> None:
        """Replace the token source; reconnects a client that was refused."""
        if self._closing:
            raise ConnectionClosed("the client was closed")
        self._tokens.set(source)
        if self.supervisor is not None and self.supervisor.was_refused:
            self.supervisor.restart()
            self._start_connecting(self.supervisor)

    async def close(self) -> None:
        """Write the waiting messages, let the running callback finish, and end all tasks."""
        if self._closing:
            return
        self._closing = True
        supervisor = self.supervisor
        if supervisor is None:
            return
        link = supervisor.link if supervisor.state is State.OPEN else None
        if link is not None:
            await link.flush()
        elif self._connecting not in (None, asyncio.current_task()):
            self._connecting.cancel()
        supervisor.end(ConnectionClosed("the client was closed"))
        self.receiver.callback_queue.clear()
        self.receiver.callback_queue.close()
        self._notifier.close()
        if self._callbacks is not None and self._callbacks is not asyncio.current_task():
            await asyncio.wait([self._callbacks], timeout=CLOSE_TIMEOUT)
        if link is not None:
            await link.close()
        await self._tasks.close()

    # --- sending

    async def post(self, item: Outgoing) -> None:
        """Queue a message in the outbox.

        While the connection is open, waits for space. While there is none, raises
        ``Overloaded`` if the outbox is full. Raises ``ConnectionClosed`` if the client does
        not reconnect or is another user now, ``InvalidEnvelope`` if the message is larger than
        the server takes.
        """
        self._check_size(item)
        while True:
            if self.supervisor is None or self.state is State.CLOSED:
                raise self._closed_error()
            if item.generation < self.supervisor.min_generation:
                raise user_changed()
            if self._outbox.has_space_for(item):
                self._outbox.put(item)
                return
            if self.state is not State.OPEN:
                raise Overloaded("too many messages wait for the connection to come back")
            await self._outbox.wait_for_change()

    def _closed_error(self) -> ConnectionClosed:
        why = None if self.supervisor is None else self.supervisor.error
        error = ConnectionClosed("the client is not connected" + (f": {why}" if why else ""))
        error.__cause__ = why
        return error

    def _check_size(self, item: Outgoing) -> None:
        """Raise ``InvalidEnvelope`` for a message that would make the server close for good."""
        link = None if self.supervisor is None else self.supervisor.link
        most = None if link is None else link.welcome.get("max_message_size")
        if isinstance(most, int) and len(item.frame) > most:
            raise InvalidEnvelope(f"{len(item.frame)} bytes; the server takes {most} at most")

    async def request(
        self,
        topic: str,
        data: Any,
        timeout: float,
        on_answer: OnAnswer | None = None,
        progress: Callable[[], int] = lambda: 0,
    ) -> dict[str, Any]:
        """Send a request and return the data of its ack; see ``Client.request``.

        ``timeout`` starts again as long as ``progress()`` has changed when it is over.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        seen, generation = progress(), self._tokens.generation
        try:
            async with self._requests.slot(until):
                with self._requests.open(
                    topic, data, on_answer=on_answer, generation=generation
                ) as pending:
                    async with asyncio.timeout_at(until):
                        await self.post(pending)
                    # If this process stood still, the answer may have come, and is not read.
                    while not await has_come(pending.answer, until - loop.time()):
                        if progress() == seen:
                            raise TimeoutError
                        seen, until = progress(), loop.time() + timeout
                    return pending.answer.result()
        except TimeoutError:
            raise AckTimeout(f"no answer to {topic} within {timeout:g} s") from None

    async def join(self, room: str, since: Since, timeout: float) -> dict[str, Any]:
        """Join a room with ``since``; see ``Client.join``."""
        with self._recovery.joining(room, since) as replay:

            def data() -> dict[str, Any]:
                position = self.rooms.position(room) if room in self.rooms else {}
                return {"room": room, "since": replay.since_for(position)}

            def joined(answer: dict[str, Any]) -> None:
                self._recovery.joined(room, replay, answer)

            return await self.request(
                "system:join", DeferredData(data), timeout, joined, lambda: replay.progress
            )

    async def leave(self, room: str, timeout: float) -> dict[str, Any]:
        """See ``Client.leave``."""

        def left(_: dict[str, Any]) -> None:
            self.rooms.left(room)
            self.rooms.cancel_leave(room)

        with self.rooms.leaving(room):
            try:
                return await self.request("system:leave", {"room": room}, timeout, left)
            except BaseException as error:
                if self._is_refusal(error):
                    self.rooms.cancel_leave(room)
                else:
                    self.rooms.left(room)
                    self._tell_out(room)
                raise

    def _is_refusal(self, error: BaseException) -> bool:
        """Return whether the server has refused a leave: the client is still in the room."""
        local = (AckTimeout, ConnectionClosed, NotAMember)
        if not isinstance(error, EyewallError) or isinstance(error, local):
            return False
        return self.state is State.OPEN  # otherwise it was the outbox

    def _tell_out(self, room: str) -> None:
        """Send a leave without a request: the one before may not have been written."""
        link = None if self.supervisor is None else self.supervisor.link
        if link is not None and self.state is State.OPEN:
            self._recovery.leave(link, room)

    async def send(self, topic: str, data: Any, event: str) -> None:
        """See ``Client.send``."""
        await self.post(Outgoing(wire.encode(topic, data, event), self._tokens.generation))
