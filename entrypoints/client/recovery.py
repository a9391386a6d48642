"""Asking for what was missed: after a reconnect, and when a room has a gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from eyewall.client import wire
from eyewall.client.link import Ended, Ending, Link
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
"""Seconds for an answer: the whole replay comes before it, at the pace at which this
client reads."""

RETRY_DELAY: Final = 1.0
"""Seconds before a room is asked for again, when the server could not say."""


class Recovery:
    """Resumes rooms, and the session that they were in."""

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
        """Something is to be asked for again, but not at once."""

    def check_gaps(self) -> None:
        """Something is missing, or there is place again for what was."""
        self._gap_found.set()

    async def resume(self, link: Link, session: str) -> None:
        """Go on with an old session and all rooms, on a new connection.

        Raises ``Ended`` when the server can't say now: the connection is of no use before
        it can. A server that does not let this client resume has told it so for good: its
        rooms are lost.
        """
        places = self._rooms.request_all()
        try:
            await self._ask(link, {"session": session, "rooms": places}, places)
        except EyewallError as error:
            if _is_transient(error):
                raise Ended(Ending(error, wait=getattr(error, "retry_after", None))) from error
            self._give_up(places, error)

    async def fill_gaps(self, link: Link) -> None:
        """Ask for what is missing, as often as something is, for as long as it runs."""
        while True:
            await self._gap_found.wait()
            self._gap_found.clear()
            while places := self._rooms.request_gaps():
                try:
                    await self._ask(link, {"rooms": places}, places)
                except EyewallError as error:
                    if _is_transient(error):
                        self._rooms.restore_gaps(places)
                        await asyncio.sleep(getattr(error, "retry_after", RETRY_DELAY))
                    else:
                        self._give_up(places, error)
                if self._later:
                    self._later = False
                    await asyncio.sleep(RETRY_DELAY)

    def leave(self, link: Link, room: str) -> None:
        """Tell the server that the client is out of a room, and wait for nothing."""
        link.post(wire.encode("system:leave", {"room": room}))

    @contextlib.contextmanager
    def joining(self, room: str, since: Since) -> Iterator[Replay]:
        """A join that asks for what was said before, for as long as its answer is waited for."""
        replay = self._rooms.begin_replay(room, since)
        try:
            yield replay
        finally:
            self._rooms.abandon_replay(room, replay)
            self.check_gaps()

    def joined(self, room: str, replay: Replay, answer: dict[str, Any]) -> None:
        """Take in the answer to such a join, and say in it whether all has come."""
        self._take_buffered(room, self._rooms.finish_replay(room, replay, answer))
        answer["recovered"] = replay.is_whole(answer)

    async def _ask(
        self, link: Link, data: Mapping[str, Any], places: Mapping[str, WirePosition]
    ) -> None:
        def answered(answer: dict[str, Any]) -> None:
            said = answer.get("rooms")
            for room in places:
                self._answered(room, said.get(room) if isinstance(said, dict) else None)
                if self._rooms.is_left(room) and room not in self._rooms:
                    self.leave(link, room)  # left meanwhile; the server took us in all the same

        with self._requests.open(TOPIC, data, survives=False, on_answer=answered) as request:
            link.post(request.frame)
            try:
                async with asyncio.timeout(RESUME_TIMEOUT):
                    await request.answer
            except TimeoutError:
                raise AckTimeout("no answer to system:resume") from None

    def _answered(self, room: str, answer: object) -> None:
        """Take what was kept aside for its turn, before anything newer comes in."""
        found = self._rooms.apply_answer(room, answer)
        self._take_buffered(room, found)
        if found.lost:
            self._lost(room, found.code)
        self._later = self._later or found.later
        self.check_gaps()

    def _take_buffered(self, room: str, found: RecoveryResult[Incoming]) -> None:
        for arrival in found.buffered:
            at = arrival.message.stream
            assert at is not None
            self._rooms.advance(room, at.offset - 1)
            if not self._take(arrival):
                return
        self._rooms.advance(room, found.upto)

    def _give_up(self, places: Mapping[str, WirePosition], error: EyewallError) -> None:
        for room in places:
            self._rooms.left(room)
            self._lost(room, code_of(error))


def _is_transient(error: EyewallError) -> bool:
    """Whether it is of use to ask again, be it on another connection."""
    if isinstance(error, ConnectionClosed):
        return True
    return isinstance(error, (Refused, Unavailable)) and error.retryable
