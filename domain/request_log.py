"""The log of a session's requests: it makes retransmitted requests idempotent.

A client that did not get the ack retransmits the request under its id; it gets the same
answer, and the handler does not run again (protocol.md, "Sessions").

Rules of this file:

1. Only answers of handlers and commands are kept. A refusal that asks the client to retry is
   not, so that the retransmission is handled.
2. The log is bounded in ids and in bytes; the oldest answers go first.
3. Beyond ``LIMIT`` requests in flight the oldest without a waiting retransmission is
   discarded. If all of them have one, new requests are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

LIMIT: Final = 256
"""Most answers that are kept: the promise of protocol.md. And most requests in flight: their
number must not grow where a fault leaves them unanswered."""

MAX_BYTES: Final = 256 * 1024
"""Most bytes of answers that are kept: 1 KiB for each, where most take 100 bytes."""


MAX_WAITING: Final = LIMIT
"""Most retransmissions of one request that are answered with it: a client that retransmits
faster than it is served gets no burst of answers."""


class RequestState(Enum):
    """The state of a registered request that has no answer yet."""

    NEW = auto()
    IN_FLIGHT = auto()
    """A retransmission: the first one is still being handled."""
    TOO_MANY = auto()
    """New, and refused: all requests in flight have waiting retransmissions."""


class RequestLog:
    """The requests in flight and the answers of one session, in the order of the answers."""

    __slots__ = ("_answers", "_bound", "_bytes", "_in_flight", "successor", "when_idle")

    def __init__(self) -> None:
        self.successor: Any = None
        """The connection that has resumed the session; None before: waiting retransmissions
        are answered to it."""
        self.when_idle: Callable[[], None] | None = None
        """Called when the last request in flight has been answered."""
        self._answers: dict[str, bytes] = {}
        self._in_flight: dict[str, int] = {}
        self._bound: set[str] = set()
        """The ids whose answer is valid for the requesting connection only."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers) + len(self._in_flight)

    def register(self, request_id: str) -> RequestState | bytes:
        """Register a request; returns its answer if it has one.

        Else ``NEW``: it is in flight now; ``IN_FLIGHT``: a retransmission, which is counted;
        ``TOO_MANY``: it is not registered.
        """
        answer = self._answers.get(request_id)
        if answer is not None:
            return answer
        if request_id in self._in_flight:
            waiting = self._in_flight[request_id] + 1
            self._in_flight[request_id] = min(waiting, MAX_WAITING)
            return RequestState.IN_FLIGHT
        if len(self._in_flight) >= LIMIT and not self._evict_one():
            return RequestState.TOO_MANY
        self._in_flight[request_id] = 0
        return RequestState.NEW

    def _evict_one(self) -> bool:
        """Discard the oldest request in flight without a waiting retransmission; False if there
        is none.

        It still gets its answer. A retransmission before that is handled again: the request is
        none of the last ``LIMIT`` any more.
        """
        for request_id, waiting in self._in_flight.items():
            if not waiting:
                del self._in_flight[request_id]
                return True
        return False

    def record(self, request_id: str, answer: bytes, *, bound: bool = False) -> int:
        """Keep the answer of a request; returns how many retransmissions wait for it.

        ``bound``: the answer is about the connection itself, such as its membership.
        """
        self._store(request_id, answer)
        if bound:
            self._bound.add(request_id)
        return self.discard(request_id)

    def _store(self, request_id: str, answer: bytes) -> None:
        self._bytes += len(answer) - len(self._answers.pop(request_id, b""))
        self._answers[request_id] = answer
        while len(self._answers) > LIMIT or (self._bytes > MAX_BYTES and len(self._answers) > 1):
            self._remove(next(iter(self._answers)))

    def discard(self, request_id: str) -> int:
        """Forget a request that was not handled; returns how many retransmissions wait."""
        waited = self._in_flight.pop(request_id, 0)
        if not self._in_flight and self.when_idle is not None:
            self.when_idle()
        return waited

    # --- a session that goes on with another connection

    @property
    def in_flight(self) -> int:
        """The number of requests that have no answer yet."""
        return len(self._in_flight)

    @property
    def size(self) -> int:
        """Bytes of all answers together."""
        return self._bytes

    def answers(self) -> list[tuple[str, bytes]]:
        """Return the kept answers by request id, oldest first."""
        return list(self._answers.items())

    def answer(self, request_id: str) -> bytes | None:
        """Return the kept answer to a request; None if there is none."""
        return self._answers.get(request_id)

    def forget_bound(self) -> None:
        """Forget the answers that are valid for the previous connection only: the next one has
        to repeat those requests."""
        for request_id in list(self._bound):
            self._remove(request_id)

    def _remove(self, request_id: str) -> None:
        self._bytes -= len(self._answers.pop(request_id, b""))
        self._bound.discard(request_id)

    def merge(self, later: RequestLog) -> None:
        """Add the answers and the requests in flight of a later connection of the session."""
        for request_id, answer in later.answers():
            self._store(request_id, answer)
        self._bound |= later._bound
        for request_id, waiting in later._in_flight.items():
            is_known = request_id in self._in_flight
            if not is_known and (len(self._in_flight) < LIMIT or self._evict_one()):
                self._in_flight[request_id] = waiting
