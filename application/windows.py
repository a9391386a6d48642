"""One user's replay as it stands: what was sent to whom, and what is unanswered.

A message takes one place, however many connections it goes to. Its first answer settles
it; when none has come from anybody, its place is free and it stays stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from eyewall.domain.identity import ConnId, UserId

WINDOW = 32
"""Messages that may be unanswered at a time (guarantees.md, "Delivery"): it fits a connection's
queue with room for others, and a client that acks one by one is not waited for each time."""

_NOBODY: frozenset[ConnId] = frozenset()


class Window:
    """What a replay remembers. One task waits for what changes in it."""

    def __init__(self, user_id: UserId) -> None:
        self.user_id = user_id
        self.again = True
        """Whether there is somebody who may not have got everything."""
        self.rested = False
        """Whether the pause before the next try is over."""
        self.is_claimed = False
        """Whether this node has, or had, the right to replay."""
        self.written = asyncio.Event()
        """The first window, or all that there was, has been written."""
        self._got: dict[str, set[ConnId]] = {}
        self._flying: dict[str, int] = {}
        self._settled: set[str] = set()
        self._removing = 0
        self._crowded: set[ConnId] = set()
        self._news = asyncio.Event()

    # --- what is asked

    def misses(self, message_id: str, conn_ids: Collection[ConnId]) -> bool:
        """Whether there is somebody who was not sent a message that nobody has answered."""
        got = self._got.get(message_id, _NOBODY)
        return message_id not in self._settled and any(c not in got for c in conn_ids)

    def may_get(self, message_id: str, conn_id: ConnId) -> bool:
        """Whether to send it there: not twice, and not past one that did not fit."""
        if message_id in self._settled or conn_id in self._crowded:
            return False
        return conn_id not in self._got.get(message_id, _NOBODY)

    def has_place(self, message_id: str) -> bool:
        return message_id in self._flying or len(self._flying) < WINDOW

    # --- what happens

    def sent(self, message_id: str, conn_ids: Collection[ConnId]) -> None:
        """It is about to be written to each of them."""
        self._got.setdefault(message_id, set()).update(conn_ids)
        self._flying[message_id] = self._flying.get(message_id, 0) + len(conn_ids)

    def unanswered(self, message_id: str, conn_id: ConnId, *, crowded: bool) -> None:
        """One of them will not answer; ``crowded``: its queue did not take it."""
        if crowded:
            self._crowded.add(conn_id)
        if message_id in self._flying:
            self._flying[message_id] -= 1
            if not self._flying[message_id]:
                del self._flying[message_id]
        self._news.set()

    def settle(self, message_id: str) -> bool:
        """Somebody has answered; True for the first, who has it removed then."""
        self._flying.pop(message_id, None)
        self._got.pop(message_id, None)
        self._news.set()
        if message_id in self._settled:
            return False
        self._settled.add(message_id)
        self._removing += 1
        return True

    def removed(self) -> None:
        self._removing -= 1
        self._news.set()

    def begin_again(self) -> None:
        """There is somebody new."""
        self.again = True
        self.written.clear()
        self._news.set()

    def end_pause(self) -> None:
        self.rested = True
        self._news.set()

    # --- what is waited for

    async def news(self) -> None:
        """Return when something has changed since the last call."""
        await self._news.wait()
        self._news.clear()

    async def quiet(self) -> None:
        """Return when nothing is unanswered any more, or there is somebody new."""
        while (self._flying or self._removing) and not self.again:
            await self.news()
