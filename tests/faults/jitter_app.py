"""The server of ``hub_app`` for ``test_jitter``: rooms that keep a history, or do not.

``rooms`` in ``HUB_APP`` are made at the start, each with ``history_size`` messages kept.
"""

from __future__ import annotations

from typing import Any

from hub_app import LIKE, server, servers  # beside this file, as for any application

from eyewall import Failure, RoomOptions

told: list[list[Any]] = []
"""What full queues dropped of the rooms' messages, as the failure handlers were told: the
connection's error, the room, and the message's data."""
others: list[str] = []
"""What else full queues dropped: the topics."""

__all__ = ["server"]


def dropped(failure: Failure) -> None:
    room = failure.message.topic.removeprefix("room:")
    if room == failure.message.topic:
        others.append(failure.message.topic)
    else:
        told.append([str(failure.error), room, failure.message.data])


@server.on_startup
async def make_rooms() -> None:
    for each in servers:
        each.hub.on_queue_full(dropped)
    for room in LIKE["rooms"]:
        await server.hub.create_room(room, RoomOptions(history_size=LIKE["history_size"]))


@server.on("jitter:drops")
async def drops(_ctx: Any, _msg: Any) -> dict[str, Any]:
    """What the servers counted, and what their failure handlers were told."""
    counted = sum(each.hub.stats().drops for each in servers)
    return {"counted": counted, "told": told, "others": others}
