"""Requests in flight, over all connections of a client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eyewall.client import wire
from eyewall.client.outbox import Outgoing
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import (
    ConnectionClosed,
    EyewallError,
    InvalidEnvelope,
    Nacked,
    Overloaded,
    from_code,
)
from eyewall.domain.topic import is_system

PUBLISH: Final = "system:publish"

MAX_IN_FLIGHT: Final = 256
"""The server remembers as many per session, so that each can be retransmitted after a cut
without being handled twice. Further requests wait for a slot."""

OnAnswer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class DeferredData:
    """A request's payload that is only known when it is written: ``data`` returns it."""

    data: Callable[[], Any]


class PendingRequest(Outgoing):
    """One request.

    ``survives``: it is retransmitted on the next connection under its id, or, if
    ``is_of_connection``, under another: an answer about the old connection would be of no
    use. ``encode`` makes the frame for an id; ``late``: each time when it is written.
    """

    __slots__ = ("_encode", "_late", "answer", "id", "is_of_connection", "on_answer", "survives")

    def __init__(
        self,
        id: str,
        encode: Callable[..., bytes],
        *,
        survives: bool,
        is_of_connection: bool,
        on_answer: OnAnswer | None,
        late: bool,
        generation: int,
    ) -> None:
        super().__init__(encode(id=id), generation)
        self._encode = encode
        self._late = late
        self.id = id
        self.survives = survives
        self.is_of_connection = is_of_connection
        self.on_answer = on_answer
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def rename(self, id: str) -> None:
        """Take another id."""
        self.id = id
        self.frame = self._encode(id=id)

    def frame_to_write(self) -> bytes:
        if self._late:
            self.frame = self._encode(id=self.id)
        return self.frame


class Requests:
    """Gives requests their ids, and passes answers to their callers."""

    def __init__(self) -> None:
        # Not guessable: no request of another client can be mistaken for one of these.
        self._prefix = secrets.token_urlsafe(9)
        self._numbers = itertools.count(1)
        self._pending: dict[str, PendingRequest] = {}
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._end: tuple[str, BaseException | None] | None = None
        """Why ``close`` has failed all requests, the last time."""

    def __len__(self) -> int:
        return len(self._pending)

    @contextlib.contextmanager
    def open(
        self,
        topic: str,
        data: Any,
        *,
        survives: bool = True,
        on_answer: OnAnswer | None = None,
        generation: int = 0,
    ) -> Iterator[PendingRequest]:
        """Register a request while its caller waits for ``answer``.

        ``on_answer`` gets the data of an ack before any later message is read. Raises
        ``ValueError`` for data that can't be sent.
        """
        pending = PendingRequest(
            self._next_id(),
            functools.partial(_encode, topic, data),
            survives=survives,
            is_of_connection=is_system(topic) and topic != PUBLISH,
            on_answer=on_answer,
            late=isinstance(data, DeferredData),
            generation=generation,
        )
        self._pending[pending.id] = pending
        try:
            yield pending
        finally:
            pending.dropped = True
            del self._pending[pending.id]
            if not pending.answer.cancel() and not pending.answer.cancelled():
                pending.answer.exception()  # its caller does not wait any more

    def _next_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    @contextlib.asynccontextmanager
    async def slot(self, until: float) -> AsyncIterator[None]:
        """Wait for one of the ``MAX_IN_FLIGHT`` slots, and hold it.

        Raises ``TimeoutError`` at the loop's time ``until``, and ``ConnectionClosed`` if
        ``close`` was called meanwhile: the next connection may be another user's.
        """
        end = self._end
        async with asyncio.timeout_at(until):
            await self._slots.acquire()
        try:
            if self._end is not None and self._end is not end:
                raise _closed(*self._end)
            yield
        finally:
            self._slots.release()

    def is_answer(self, message: Envelope[Any], *, is_draining: bool = False) -> bool:
        """Take an ack, nack or error; False for a message of the application.

        The event does not tell: applications may have an ``ack`` and an ``error`` too. An
        answer names a request in flight; or, having no id, as only answers have none, it is
        an ack to a request whose caller does not wait any more.
        """
        if self.settle(message, is_draining=is_draining):
            return True
        if message.event != "ack":
            return False
        return not message.topic or (message.id is None and bool(_named(message, _data(message))))

    def settle(self, message: Envelope[Any], *, is_draining: bool = False) -> bool:
        """Take an ack, nack or error; False if it names no request in flight.

        A server that drains refuses requests with ``overloaded``: those that survive are
        retransmitted to the next server.
        """
        data = _data(message)
        pending = self._pending.get(_named(message, data) or "")
        if pending is None or pending.answer.done():
            return False
        if message.event == "ack" and data.get("status", "ok") == "ok":
            if pending.on_answer is not None:
                pending.on_answer(data)
            pending.answer.set_result(data)
        elif not (is_draining and pending.survives and data.get("code") == Overloaded.code):
            pending.answer.set_exception(_error(data))
        return True

    def unanswered(self) -> list[PendingRequest]:
        """Return the requests to retransmit, in the order in which they were made."""
        found = [
            p for p in self._pending.values() if p.survives and p.written and not p.answer.done()
        ]
        for pending in found:
            if pending.is_of_connection:
                pending.rename(self._next_id())
        self._pending = {pending.id: pending for pending in self._pending.values()}
        return found

    def fail_before(self, generation: int, error: Callable[[], EyewallError]) -> None:
        """Fail the requests of older token sources with ``error()``."""
        for pending in self._pending.values():
            if pending.generation < generation:
                pending.dropped = True
                if not pending.answer.done():
                    pending.answer.set_exception(error())

    def close(self, text: str, cause: BaseException | None = None) -> None:
        """Fail all requests, also those that wait for a slot: there is no connection any more."""
        self._end = (text, cause)
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(_closed(text, cause))


def _closed(text: str, cause: BaseException | None) -> ConnectionClosed:
    error = ConnectionClosed(text)
    error.__cause__ = cause
    return error


def _encode(topic: str, data: Any, *, id: str) -> bytes:
    return wire.encode(
        topic, data.data() if isinstance(data, DeferredData) else data, id=id, ack=True
    )


def _data(message: Envelope[Any]) -> dict[str, Any]:
    try:
        return message.data if isinstance(message.data, dict) else {}
    except InvalidEnvelope as error:
        return {"status": "nack", "error": str(error)}


def _named(message: Envelope[Any], data: Mapping[str, Any]) -> str | None:
    """Return the id of the request that an answer names."""
    named = data.get("message_id") if message.event == "ack" else None
    return named if isinstance(named, str) else message.ref


def _error(data: dict[str, Any]) -> EyewallError:
    """Return the error that a nack or error message stands for."""
    text = data.get("error")
    text = text if isinstance(text, str) else ""
    code = data.get("code")
    return from_code(code, text, data) if isinstance(code, str) else Nacked(text)
