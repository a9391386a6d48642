"""The answers that a session remembers, so that a request may be sent again.

A client that did not see the ack resends the request under its id; it is answered
again and not handled again (protocol.md, "Sessions").

Rules of this file:

1. Only answers of handlers and commands are remembered. A refusal that asks the client
   to try again is forgotten, so that the repeat is handled.
2. Bounded in ids and in bytes; the oldest answers go first.
3. A request in work is forgotten only when more than ``LIMIT`` are: the oldest that no
   repeat waits for. Where repeats wait for all of them, no more are taken in.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

LIMIT: Final = 256
"""Answers remembered: what protocol.md promises. And requests in work, which a path that
fails to answer must not let grow."""

MAX_BYTES: Final = 256 * 1024
"""Bytes of answers remembered: 1 KiB for each, where most take 100 bytes."""


MOST_WAITING: Final = LIMIT
"""Repeats of one request that are answered when it is: a client that resends faster
than it is served gets no burst of answers out of it."""


class Seen(Enum):
    NEW = auto()
    IN_WORK = auto()
    TOO_MANY = auto()
    """New, and not taken in: repeats wait for all that are in work."""


class RequestLog:
    """Ids of requests by what became of them, in the order in which they were answered."""

    __slots__ = ("_answers", "_bound", "_bytes", "_in_work", "holder", "when_idle")

    def __init__(self) -> None:
        self.holder: Any = None
        """The connection that the session goes on with, when it has come back: repeats
        that wait are answered to it."""
        self.when_idle: Callable[[], None] | None = None
        """Called when the last request in work has been answered."""
        self._answers: dict[str, bytes] = {}
        self._in_work: dict[str, int] = {}
        self._bound: set[str] = set()
        """Those whose answer is true of the connection that asked, and of no other."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers) + len(self._in_work)

    def look(self, request_id: str) -> Seen | bytes:
        """Take in a request: new (now in work), in work (counted), or its answer.

        ``TOO_MANY`` is the one that is not taken in.
        """
        answer = self._answers.get(request_id)
        if answer is not None:
            return answer
        if request_id in self._in_work:
            waiting = self._in_work[request_id] + 1
            self._in_work[request_id] = min(waiting, MOST_WAITING)
            return Seen.IN_WORK
        if len(self._in_work) >= LIMIT and not self._has_let_go():
            return Seen.TOO_MANY
        self._in_work[request_id] = 0
        return Seen.NEW

    def _has_let_go(self) -> bool:
        """Forget the oldest request in work that no repeat waits for; False if there is none.

        It is answered when it is done, as it was asked; a repeat that comes before that is
        handled again: it is none of the last ``LIMIT`` any more.
        """
        for request_id, waiting in self._in_work.items():
            if not waiting:
                del self._in_work[request_id]
                return True
        return False

    def answered(self, request_id: str, answer: bytes, *, bound: bool = False) -> int:
        """Remember the answer; returns how many repeats waited for it.

        ``bound``: it is about the connection itself, such as that it is in a room.
        """
        self._remember(request_id, answer)
        if bound:
            self._bound.add(request_id)
        return self.forgotten(request_id)

    def _remember(self, request_id: str, answer: bytes) -> None:
        self._bytes += len(answer) - len(self._answers.pop(request_id, b""))
        self._answers[request_id] = answer
        while len(self._answers) > LIMIT or (self._bytes > MAX_BYTES and len(self._answers) > 1):
            self._drop(next(iter(self._answers)))

    def forgotten(self, request_id: str) -> int:
        """The request was not handled after all; returns how many repeats waited."""
        waited = self._in_work.pop(request_id, 0)
        if not self._in_work and self.when_idle is not None:
            self.when_idle()
        return waited

    # --- a session that goes on with another connection

    @property
    def in_work(self) -> int:
        """Requests that have not been answered yet."""
        return len(self._in_work)

    @property
    def size(self) -> int:
        """The size of all answers together."""
        return self._bytes

    def answers(self) -> list[tuple[str, bytes]]:
        """What is remembered, oldest first."""
        return list(self._answers.items())

    def answer(self, request_id: str) -> bytes | None:
        """The answer to a request; None if none is remembered."""
        return self._answers.get(request_id)

    def unbind(self) -> None:
        """Forget what was true of the connection that had the session: the next one has to
        ask anew."""
        for request_id in list(self._bound):
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        self._bytes -= len(self._answers.pop(request_id, b""))
        self._bound.discard(request_id)

    def take_in(self, later: RequestLog) -> None:
        """Add what another connection of the session has asked since: its answers, and
        its requests that are in work."""
        for request_id, answer in later.answers():
            self._remember(request_id, answer)
        self._bound |= later._bound
        for request_id, waiting in later._in_work.items():
            is_known = request_id in self._in_work
            if not is_known and (len(self._in_work) < LIMIT or self._has_let_go()):
                self._in_work[request_id] = waiting
