"""Reads the histories of rooms: pages of messages, and positions."""

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
        """Return the first ``limit`` messages after ``since``, or the newest ones if it is None.

        Returns None for a room without history. Only the offsets show that messages after
        ``since`` are gone. A ``since`` of another epoch gets no messages. Raises
        ``RoomNotFound``.
        """
        room = await self._state.room(room_id)
        if room is None:
            raise RoomNotFound(f"there is no room {room_id}")
        if Retention.of(room.options) is None:
            return None
        page = await self._history.read(room_id, since, limit, self._clock.wall())
        # A caller that reads on takes an empty page for the end: skip pages without a readable
        # message.
        while since is not None and page.entries and not any(map(self.is_readable, page.entries)):
            since = Position(page.position.epoch, page.first + len(page.entries) - 1)
            page = await self._history.read(room_id, since, limit, self._clock.wall())
        return page

    async def page(self, room_id: RoomId, since: Position | None, limit: int) -> HistoryPage:
        """Return the same page as messages; an empty one without a position if the room has no
        history.

        A message that can't be decoded is left out and logged; the others are returned.
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
        """Return a kept message as a value within another message."""
        return Raw(payload, self._codec.format)

    async def with_position(self, info: RoomInfo) -> RoomInfo:
        """Return ``info`` with the room's position, if the room keeps a history."""
        if Retention.of(info.options) is None:
            return info
        at = await self._history.position(info.id)
        return replace(info, epoch=at.epoch, offset=at.offset)

    async def renew(self, room_id: RoomId) -> Position:
        """Begin an epoch and return its position; the messages kept before are removed."""
        await self._history.remove(room_id)
        return await self._history.position(room_id)

    async def forget(self, room_id: RoomId) -> None:
        """Remove the room's history."""
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
    """Return the page's messages encoded with their positions.

    Leaves out the messages that skip ``conn_id`` and those that ``fits`` rejects. Returns at
    most ``max_bytes`` together, but at least one message: the first ones, or with ``newest``
    the last ones. ``fits`` is not called for messages beyond that.
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
