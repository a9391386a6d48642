"""Rooms and their members, as values that the API returns.

Type checkers accept plain strings for the ids, as a test that builds such a value has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from eyewall.domain.identity import ConnId, RoomId, UserId
from eyewall.domain.room import RoomOptions, RoomRole


@dataclass(frozen=True, slots=True)
class Membership:
    """A connection's membership in a room; ``members`` counts the room's connections.

    ``epoch`` and ``offset`` are None where the room keeps no history.
    """

    room_id: RoomId
    conn_id: ConnId
    role: RoomRole
    members: int
    epoch: str | None = None
    offset: int | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            room_id: RoomId | str,
            conn_id: ConnId | str,
            role: RoomRole,
            members: int,
            epoch: str | None = None,
            offset: int | None = None,
        ) -> None: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a room, with all of its connections there."""

    user_id: UserId | None
    role: RoomRole
    connections: int
    joined_at: datetime

    if TYPE_CHECKING:

        def __init__(
            self,
            user_id: UserId | str | None,
            role: RoomRole,
            connections: int,
            joined_at: datetime,
        ) -> None: ...


@dataclass(frozen=True, slots=True)
class RoomInfo:
    """The current state of a room; ``members`` counts its connections in the cluster."""

    id: RoomId
    options: RoomOptions
    members: int
    created_at: datetime
    epoch: str | None = None
    offset: int | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            id: RoomId | str,
            options: RoomOptions,
            members: int,
            created_at: datetime,
            epoch: str | None = None,
            offset: int | None = None,
        ) -> None: ...
