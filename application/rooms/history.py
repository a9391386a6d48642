"""Reads what rooms keep: pages of messages, and the position of a room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import told
from eyewall.application.ports.message import Codec, add_position
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import HistoryStore, StateStore
from eyewall.domain.envelope import Envelope, Raw, StreamPosition
from eyewall.domain.errors import Refused, RoomNotFound
from eyewall.domain.history import Entry, HistoryPage, Page, Position, Retention
from eyewall.domain.identity import RoomId
from eyewall.domain.membership import RoomInfo


class RoomHistory:
    """The histories of the cluster's rooms. Every method may raise ``Unavailable``."""

    def __init__(
        self,
        *,
        history: HistoryStore,
        state: StateStore,
        codec: Codec,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._history = history
        self._state = state
        self._codec = codec
        self._clock = clock
        self._logger = logger

    async def read(self, room_id: RoomId, since: Position | None, limit: int) -> Page | None:
        """The first ``limit`` messages after ``since``, or the newest ones; None for a room
        that keeps none.

        Of those after ``since`` that are gone nothing is said but by the offsets of the
        others; of another epoch nothing is given. Raises ``RoomNotFound``.
        """
        room = await self._state.room(room_id)
        if room is None:
            raise RoomNotFound(f"there is no room {room_id}")
        if Retention.of(room.options) is None:
            return None
        page = await self._history.read(room_id, since, limit, self._clock.wall())
        # Who reads on, and gets nothing, takes that for the end.
        while since is not None and page.entries and not any(map(self.is_readable, page.entries)):
            since = Position(page.position.epoch, page.first + len(page.entries) - 1)
            page = await self._history.read(room_id, since, limit, self._clock.wall())
        return page

    async def page(self, room_id: RoomId, since: Position | None, limit: int) -> HistoryPage:
        """The same as messages; none, without a position, for a room that keeps none.

        A message that can't be read is left out and logged: it costs itself, and no other.
        """
        page = await self.read(room_id, since, limit)
        if page is None:
            return HistoryPage([])
        messages = [
            message.with_position(StreamPosition(room_id, at.epoch, at.offset))
            for at, entry in page.with_positions()
            if (message := self._message(entry)) is not None
        ]
        return HistoryPage(messages, page.position.epoch, page.position.offset)

    def is_readable(self, entry: Entry) -> bool:
        """Whether a kept message can be decoded; logs one that can't."""
        return self._message(entry) is not None

    def _message(self, entry: Entry) -> Envelope | None:
        """Return a kept message; None, logged, if its payload can't be decoded, as that of another
        node or of an older release may be."""
        try:
            message = self._codec.decode(entry.payload)
            if message.raw is not None:
                message.raw.check()
        except Refused as error:
            self._logger.error("entry_not_read", error=told(error))
            return None
        return message

    def raw(self, payload: bytes) -> Raw:
        """A kept message as a value within another message."""
        return Raw(payload, self._codec.format)

    async def with_position(self, info: RoomInfo) -> RoomInfo:
        """Say where the room stands, if it keeps a history."""
        if Retention.of(info.options) is None:
            return info
        at = await self._history.position(info.id)
        return replace(info, epoch=at.epoch, offset=at.offset)

    async def renew(self, room_id: RoomId) -> Position:
        """Begin an epoch: what was kept before is nothing that members could go on from."""
        await self._history.remove(room_id)
        return await self._history.position(room_id)

    async def forget(self, room_id: RoomId) -> None:
        """Keep nothing of the room any more."""
        await self._history.remove(room_id)


def _all(_: Entry) -> bool:
    return True


def encode_page(
    room_id: RoomId,
    page: Page,
    conn_id: str,
    max_bytes: int,
    *,
    newest: bool,
    fits: Callable[[Entry], bool] = _all,
) -> list[bytes]:
    """The page's messages as they go out, without those that were not for ``conn_id``, or
    that ``fits`` leaves out.

    Of what is more than ``max_bytes`` together, at least one message is left: the first
    ones, or the last ones for ``newest``. The others are not even looked at.
    """
    found = list(page.with_positions())
    taken: list[bytes] = []
    size = 0
    for at, entry in reversed(found) if newest else found:
        if conn_id in entry.skip:
            continue
        payload = add_position(entry.payload, room_id, at)
        size += len(payload)
        if taken and size > max_bytes:
            break
        if fits(entry):
            taken.append(payload)
    return taken[::-1] if newest else taken
