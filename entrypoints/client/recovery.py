"""Requests for missed messages: after a reconnect, and when a room has a gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from eyewall.client import wire
from eyewall.client.link import Ended, Ending, Link, requested_wait
from eyewall.client.receiver import Incoming
from eyewall.client.requests import Requests
from eyewall.client.rooms import RecoveryResult, Replay, RoomTracker, WirePosition
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    Refused,
    Unavailable,
    code_of,
)
from eyewall.domain.history import Since

TOPIC: Final = "system:resume"

RESUME_TIMEOUT: Final = 60.0
"""Seconds for an answer: the whole replay comes before it, as fast as this client reads."""

RETRY_DELAY: Final = 1.0
"""Seconds before a room is requested again that the server could not answer for."""


class Recovery:
    """Resumes the session and its rooms, and fills gaps."""

    def __init__(
        self,
        *,
        rooms: RoomTracker[Incoming],
        requests: Requests,
        take: Callable[[Incoming], bool],
        lost: Callable[[str, str | None], None],
    ) -> None:
        self._rooms = rooms
        self._requests = requests
        self._take = take
        self._lost = lost
        self._gap_found = asyncio.Event()
        self._later = False
        """Whether a room has to be requested again, but not at once."""

    def check_gaps(self) -> None:
        """Look for gaps soon: there is a new one, or a queue has space again."""
        self._gap_found.set()

    async def resume(self, link: Link, session: str) -> None:
        """Resume an old session and all rooms on a new connection.

        Raises ``Ended`` if the server can't do it now: the connection is of no use then. A
        server that refuses it does so for good: the rooms are lost.
        """
        positions = self._rooms.request_all()
        try:
            await self._request(link, {"session": session, "rooms": positions}, positions)
        except EyewallError as error:
            if _is_transient(error):
                raise Ended(Ending(error, wait=_wait_of(error))) from error
            self._give_up(positions, error)

    async def fill_gaps(self, link: Link) -> None:
        """Request missing messages whenever a room has a gap; runs for ever."""
        while True:
            await self._gap_found.wait()
            self._gap_found.clear()
            while positions := self._rooms.request_gaps():
                try:
                    await self._request(link, {"rooms": positions}, positions)
                except EyewallError as error:
                    if _is_transient(error):
                        self._rooms.restore_gaps(positions)
                        wait = _wait_of(error)
                        await asyncio.sleep(RETRY_DELAY if wait is None else wait)
                    else:
                        self._give_up(positions, error)
                if self._later:
                    self._later = False
                    await asyncio.sleep(RETRY_DELAY)

    def leave(self, link: Link, room: str) -> None:
        """Send a leave without a request for an ack."""
        link.post(wire.encode("system:leave", {"room": room}))

    @contextlib.contextmanager
    def joining(self, room: str, since: Since) -> Iterator[Replay]:
        """Track the replay of a join with ``since`` while its answer is awaited."""
        replay = self._rooms.begin_replay(room, since)
        try:
            yield replay
        finally:
            self._rooms.abandon_replay(room, replay)
            self.check_gaps()

    def joined(self, room: str, replay: Replay, answer: dict[str, Any]) -> None:
        """Take the answer to such a join, and set its ``recovered``."""
        self._take_buffered(room, self._rooms.finish_replay(room, replay, answer))
        answer["recovered"] = replay.is_whole(answer)

    async def _request(
        self, link: Link, data: Mapping[str, Any], positions: Mapping[str, WirePosition]
    ) -> None:
        def answered(answer: dict[str, Any]) -> None:
            said = answer.get("rooms")
            for room in positions:
                self._apply_answer(room, said.get(room) if isinstance(said, dict) else None)
                if self._rooms.is_left(room) and room not in self._rooms:
                    self.leave(link, room)  # left meanwhile; the server has joined the client

        with self._requests.open(TOPIC, data, survives=False, on_answer=answered) as request:
            link.post(request.frame)
            try:
                async with asyncio.timeout(RESUME_TIMEOUT):
                    await request.answer
            except TimeoutError:
                raise AckTimeout("no answer to system:resume") from None

    def _apply_answer(self, room: str, answer: object) -> None:
        """Take the buffered messages before any newer one is received."""
        found = self._rooms.apply_answer(room, answer)
        self._take_buffered(room, found)
        if found.lost:
            self._lost(room, found.code)
        self._later = self._later or found.later
        self.check_gaps()

    def _take_buffered(self, room: str, found: RecoveryResult[Incoming]) -> None:
        for incoming in found.buffered:
            at = incoming.message.stream
            assert at is not None
            self._rooms.advance(room, at.offset - 1)
            if not self._take(incoming):
                return
        self._rooms.advance(room, found.upto)

    def _give_up(self, rooms: Iterable[str], error: EyewallError) -> None:
        for room in rooms:
            self._rooms.left(room)
            self._lost(room, code_of(error))


def _is_transient(error: EyewallError) -> bool:
    """Return whether another request may succeed, on this connection or the next."""
    if isinstance(error, ConnectionClosed):
        return True
    return isinstance(error, (Refused, Unavailable)) and error.retryable


def _wait_of(error: EyewallError) -> float | None:
    """Return the seconds that the server asked for, bounded; None if it did not ask."""
    return requested_wait(getattr(error, "retry_after", None))
