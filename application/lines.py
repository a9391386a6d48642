"""Lines in which newer messages to a user wait until the stored ones have gone out.

Who waits goes on in the order of coming, and nobody who comes later goes before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from eyewall.domain.identity import UserId

LENGTH = 1000
"""Sends that may wait for one user: as many as messages may be stored for one. Each holds
its message and its caller."""


class _Line:
    """Who waits, and whether they may go on."""

    __slots__ = ("is_open", "waiting")

    def __init__(self) -> None:
        self.is_open = False
        self.waiting: deque[asyncio.Future[None]] = deque()


class Lines:
    """A line for each user whose messages have to wait; the others cost nothing."""

    def __init__(self) -> None:
        self._lines: dict[UserId, _Line] = {}

    def __contains__(self, user_id: UserId) -> bool:
        """Whether a message to the user has to wait."""
        return user_id in self._lines

    def shut(self, user_id: UserId) -> None:
        """Have messages to the user wait from now on."""
        self._lines.setdefault(user_id, _Line()).is_open = False

    def open(self, user_id: UserId) -> None:
        """Let those who wait go on, one after the other. May be called again."""
        line = self._lines.get(user_id)
        if line is not None and not line.is_open:
            line.is_open = True
            self._next(user_id, line)

    async def wait(self, user_id: UserId) -> bool:
        """Wait in the user's line; False at once if it is too long."""
        line = self._lines.get(user_id)
        if line is None:
            return True
        if len(line.waiting) >= LENGTH:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # passed over meanwhile
                    line.waiting.remove(turn)
            else:
                self._next(user_id, line)  # it had been its turn
            raise
        self._next(user_id, line)
        return True

    def _next(self, user_id: UserId, line: _Line) -> None:
        if not line.is_open:
            return
        while line.waiting:
            turn = line.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        if self._lines.get(user_id) is line:
            del self._lines[user_id]
