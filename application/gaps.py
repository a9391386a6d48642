"""Messages of rooms with history that a connection's full queue has dropped.

They are noted when they are dropped, and told, once for each room, when the queue has
drained: ``system:gap`` names the place up to which nothing is missing.
"""

from __future__ import annotations

from eyewall.application.connections import Connection
from eyewall.application.frames import Frame
from eyewall.domain.history import Position
from eyewall.domain.identity import ConnId, RoomId

GAP = "system:gap"


class Gaps:
    """What has been dropped and not been told, by connection and room.

    A connection has at most one note for each of its rooms.
    """

    def __init__(self) -> None:
        self._of: dict[ConnId, dict[RoomId, Position]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def note(self, conn: Connection, frame: Frame) -> None:
        """A frame was dropped; one without a place in a history leaves no gap."""
        if frame.position is None or frame.stream is None or not conn.is_open:
            return
        self.begins(conn, RoomId(frame.stream), frame.position.before)

    def begins(self, conn: Connection, room_id: RoomId, sound: Position) -> None:
        """Nothing is missing up to ``sound``, and something after it."""
        rooms = self._of.setdefault(conn.id, {})
        noted = rooms.get(room_id)
        # What was noted first is the longest ago, unless an earlier frame gave way later.
        if noted is None or noted.is_past(sound):
            rooms[room_id] = sound

    def take(self, conn: Connection) -> dict[RoomId, Position]:
        """Return, and forget, up to where nothing is missing in each room with a gap."""
        found = self._of.pop(conn.id, {})
        return {room_id: at for room_id, at in found.items() if room_id in conn.roles}

    def forget(self, conn: Connection) -> None:
        """The connection has ended."""
        self._of.pop(conn.id, None)
