"""Who may listen where, by the access controller's word."""

from __future__ import annotations

import inspect

from eyewall.application.connections import Connection
from eyewall.application.middleware import method
from eyewall.application.ports import AccessController
from eyewall.domain.errors import Forbidden
from eyewall.domain.identity import RoomId


class Door:
    """Asked for every join, ``hub.join`` and ``force`` included."""

    def __init__(self, access: AccessController | None) -> None:
        self._can_subscribe = None if access is None else method(access, "can_subscribe")

    async def check(self, room_id: RoomId, conn: Connection) -> None:
        """Raise ``Forbidden`` if the connection may not listen to the room."""
        if self._can_subscribe is None:
            return
        allowed = self._can_subscribe(conn.meta, room_id)
        if not (await allowed if inspect.isawaitable(allowed) else allowed):
            raise Forbidden(f"you may not join {room_id}")

    async def refusal(self, room_id: RoomId, conn: Connection) -> Forbidden | None:
        """What ``check`` would raise."""
        try:
            await self.check(room_id, conn)
        except Forbidden as error:
            return error
        return None
