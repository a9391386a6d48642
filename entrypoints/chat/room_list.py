"""The rooms of the chat: created, listed for all clients, and deleted when they stay empty."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

from eyewall import (
    Context,
    Hub,
    Message,
    Overloaded,
    RoomId,
    RoomNotFound,
    RoomOptions,
    Unavailable,
    ValidationError,
    Where,
)
from eyewall.chat.visitors import tidy

LOBBY = RoomId("general")
"""The room that always exists."""

MAX_ROOMS = 50
"""More than people read in a list; it bounds the memory for history."""

MAX_MESSAGES = 100
"""Messages that a room keeps: a newcomer reads them in a minute."""

OPTIONS = RoomOptions(
    announce=True,
    auto_cleanup=False,
    history_size=MAX_MESSAGES,
    history_ttl=timedelta(days=1),
)
"""Members see joins and leaves. An empty room stays until ``sweep`` deletes it, and keeps its
messages for a day."""

MAX_ROOM_BYTES = 512 * 1024
"""The limit on the history of a room: a hundred messages of the longest kind. With ``MAX_ROOMS``
it is 25 MiB for all rooms, however large the messages of programs are."""

LONGEST_LIST = 100
"""Rooms in the list: programs may join any number of rooms, which creates them."""

WATCHING = frozenset({"chat:rooms"})
"""The tag of the connections that get the list."""


async def open_room(hub: Hub, name: str) -> RoomId:
    """Create a room with a history unless it exists; returns its id.

    A room that arose by joining has no history until it is opened here. Raises
    ``ValidationError`` for a wrong name, ``Overloaded`` if there are ``MAX_ROOMS`` others.
    """
    room_id = tidy(name.lower())
    if room_id is None:
        raise ValidationError({"room": ["a name has 1 to 32 printable characters"]})
    room = await hub.room(RoomId(room_id))
    if room is not None and room.options == OPTIONS:
        return room.id
    others = set(await hub.rooms()) - {room_id}
    if len(others) >= MAX_ROOMS:
        raise Overloaded(f"there are {MAX_ROOMS} rooms already", retry_after=60.0)
    # No RoomExists if another request was faster: the options are equal.
    await hub.create_room(RoomId(room_id), OPTIONS)
    return RoomId(room_id)


class RoomList:
    """Sends the list to its watchers when it changes, and deletes rooms that stay empty."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._changed = asyncio.Event()
        """Belongs to the event loop in which ``tell`` runs: a server may run several times."""
        self._empty: set[RoomId] = set()
        """The rooms that were empty at the last ``close_empty``."""
        hub.on_join(self._note)
        hub.on_leave(self._note)

    def _note(self, *_: object) -> None:
        self._changed.set()

    @staticmethod
    async def watch(ctx: Context) -> dict[str, Any]:
        """Return the list, and make the connection of ``ctx`` a watcher."""
        ctx.hub.set_meta(ctx.conn.id, tags=ctx.meta.tags | WATCHING)
        return await listing(ctx.hub)

    async def tell(self, *, pause: float = 0.25) -> None:
        """Send the list when it has changed, at most once per ``pause`` seconds; runs for ever."""
        before, self._changed = self._changed, asyncio.Event()
        if before.is_set():
            self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                message = Message("chat:rooms", "rooms", await listing(self._hub))
                await self._hub.broadcast_with_filter(message, Where(tags=WATCHING))
            except Unavailable:
                self._changed.set()  # the store is not available: retry after the pause
            await asyncio.sleep(pause)

    async def sweep(self, *, pause: float = 60.0) -> None:
        """Call ``close_empty`` every ``pause`` seconds; runs for ever."""
        while True:
            await asyncio.sleep(pause)
            with suppress(Unavailable, RoomNotFound):
                await self.close_empty()

    async def close_empty(self) -> None:
        """Close the rooms that were empty at the last call, too."""
        rooms = [await self._hub.room(room) for room in await self._hub.rooms()]
        before = self._empty
        self._empty = {room.id for room in rooms if room and not room.members}
        for room_id in (before & self._empty) - {LOBBY}:
            await self._hub.delete_room(room_id)
            self._changed.set()


async def listing(hub: Hub) -> dict[str, Any]:
    """Return all rooms by name, each with its number of connections."""
    rooms = [await hub.room(room_id) for room_id in sorted(await hub.rooms())[:LONGEST_LIST]]
    return {"rooms": [{"id": room.id, "members": room.members} for room in rooms if room]}
