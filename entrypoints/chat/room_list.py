"""The rooms: how they are made, what they keep, listed on everybody's screen, and closed."""

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
"""The room that is always there."""

MAX_ROOMS = 50

MAX_MESSAGES = 100
"""What a room keeps of what was said: a late comer reads it in a minute."""

OPTIONS = RoomOptions(
    announce=True,
    auto_cleanup=False,
    history_size=MAX_MESSAGES,
    history_ttl=timedelta(days=1),
)
"""Members are told who comes and goes. The room stays when all have left, for a while, and
keeps what was said for a day."""

MAX_ROOM_BYTES = 512 * 1024
"""What a room keeps of it at most: a hundred of the longest messages. With ``MAX_ROOMS`` it
is 25 MiB for all rooms together, however large the messages of programs are."""

LONGEST_LIST = 100
"""Rooms that the list shows: programs may join more, which nobody created."""

WATCHING = frozenset({"chat:rooms"})
"""The tag of the connections that see the list."""


async def open_room(hub: Hub, name: str) -> RoomId:
    """Make sure that there is a room of this name, and that it keeps what is said.

    One that a program has made by joining it keeps nothing until somebody opens it here.
    Raises ``ValidationError`` for a bad name, ``Overloaded`` when there are too many.
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
    # No error if somebody was faster: the options are equal.
    await hub.create_room(RoomId(room_id), OPTIONS)
    return RoomId(room_id)


class RoomList:
    """Tells who watches when the list changes, and closes rooms that stay empty."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._changed = asyncio.Event()
        """Of the event loop in which ``tell`` runs: a server may have several lives."""
        hub.on_join(self._note)
        hub.on_leave(self._note)

    def _note(self, *_: object) -> None:
        self._changed.set()

    @staticmethod
    async def watch(ctx: Context) -> dict[str, Any]:
        """Return the list, and go on telling the connection that asked."""
        ctx.hub.set_meta(ctx.conn.id, tags=ctx.meta.tags | WATCHING)
        return await listing(ctx.hub)

    async def tell(self, *, pause: float = 0.25) -> None:
        """Send the list when it has changed: once for all the joins of a storm."""
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
                self._changed.set()  # the state can't be reached: again after the pause
            await asyncio.sleep(pause)

    async def sweep(self, *, pause: float = 60.0) -> None:
        """Close rooms that were empty at two looks in a row."""
        empty: set[RoomId] = set()
        while True:
            await asyncio.sleep(pause)
            with suppress(Unavailable, RoomNotFound):
                rooms = [await self._hub.room(room) for room in await self._hub.rooms()]
                before, empty = empty, {room.id for room in rooms if room and not room.members}
                for room_id in (before & empty) - {LOBBY}:
                    await self._hub.delete_room(room_id)
                    self._changed.set()


async def listing(hub: Hub) -> dict[str, Any]:
    """Return every room with the number of connections in it, by name."""
    rooms = [await hub.room(room_id) for room_id in sorted(await hub.rooms())[:LONGEST_LIST]]
    return {"rooms": [{"id": room.id, "members": room.members} for room in rooms if room]}
