"""Transactions on a room like those of the application, for the contract of the state store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from eyewall.domain.identity import ConnId, NodeId, RoomId
from eyewall.domain.room import LeaveReason, Room, RoomOptions, RoomRole, Standing

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def joins(conn_id: str, node: str = "n1") -> Any:
    def rule(room: Room | None, standing: Standing) -> tuple[Room, int]:
        room = room or Room(RoomId("lab"), RoomOptions(), NOW)
        room.admit(standing, ConnId(conn_id), NodeId(node), now=NOW)
        return room, room.seats

    return rule


def leaves(conn_id: str) -> Any:
    def rule(room: Room | None, standing: Standing) -> tuple[Room | None, int]:
        gone = room.release(standing, [ConnId(conn_id)], LeaveReason.LEFT, now=NOW) if room else []
        return room, len(gone)

    return rule


def grants(role: RoomRole) -> Any:
    def rule(room: Room | None, standing: Standing) -> tuple[Room, None]:
        room = room or Room(RoomId("lab"), RoomOptions(), NOW)
        room.grant(standing, role)
        return room, None

    return rule


def creates(room_id: str = "lab", **options: Any) -> Any:
    def rule(room: Room | None, _: Standing) -> tuple[Room, None]:
        room = room or Room(RoomId(room_id), RoomOptions(), NOW)
        room.create(RoomOptions(**options))
        return room, None

    return rule


def looks(room: Room | None, standing: Standing) -> tuple[Room | None, tuple[Any, Standing]]:
    return room, (room, standing.copy())
