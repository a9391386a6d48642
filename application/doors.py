"""Who may listen where, by the access controller's word.

A word is about the owner that the connection had when it was asked for. Where the
connection has become another user's, or got other roles, while the controller thought
about it, the word is void, and the controller is asked again.
"""

from __future__ import annotations

import inspect

from eyewall.application.connections import Connection
from eyewall.application.ports import AccessController, method
from eyewall.domain.errors import Forbidden
from eyewall.domain.identity import ConnMeta, RoomId

TRIES = 3
"""How often a decision is made anew because the connection has changed meanwhile. One
that goes on changing is refused: it would keep the controller busy for ever."""
CHANGING = "this connection goes on becoming somebody else"


class Door:
    """Asked for every join, ``hub.join`` and ``force`` included."""

    def __init__(self, access: AccessController | None) -> None:
        self._can_subscribe = None if access is None else method(access, "can_subscribe")

    @property
    def is_guarded(self) -> bool:
        """Whether there is anybody to ask."""
        return self._can_subscribe is not None

    async def check(self, room_id: RoomId, conn: Connection) -> ConnMeta:
        """Return the owner who may listen to the room: the connection's at this moment.

        Raises ``Forbidden`` if that one may not.
        """
        if self._can_subscribe is None:
            return conn.meta
        for _ in range(TRIES):
            meta = conn.meta
            allowed = self._can_subscribe(meta, room_id)
            if inspect.isawaitable(allowed):
                allowed = await allowed
            if conn.meta.is_same_owner(meta):
                if not allowed:
                    raise Forbidden(f"you may not join {room_id}")
                return conn.meta
        raise Forbidden(CHANGING)

    async def refusal(self, room_id: RoomId, conn: Connection) -> Forbidden | None:
        """What ``check`` would raise."""
        try:
            await self.check(room_id, conn)
        except Forbidden as error:
            return error
        return None
