"""An ACK monitor: who has not confirmed what, and for how long.

    python examples/ack_monitor.py
    python -m websockets "ws://localhost:8080/ws?name=worker-1"
    python -m websockets "ws://localhost:8080/ws?name=monitor-1"

The monitor types this, and gets the result when all workers have answered or 30 s are over.
Until then every monitor is sent the list of open acks, once a second.

    {"topic": "work:announce", "data": {"text": "new plan"}, "ack": true, "id": "1"}

A worker answers by the id of what it got: {"event": "ack", "ref": "ITS ID"}
"""

import asyncio
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from eyewall import (
    AckOptions,
    Connection,
    ConnMeta,
    Context,
    Envelope,
    Handshake,
    Message,
    Server,
    Target,
    UserId,
)


def by_name(handshake: Handshake) -> ConnMeta | None:
    name = handshake.query.get("name")
    return ConnMeta(user_id=UserId(name)) if name else None


server = Server(authenticator=by_name)
hub = server.hub


@hub.on_connect
async def assign(conn: Connection) -> None:
    kind, _, _ = str(conn.user_id).partition("-")
    await hub.join(kind, conn.id)  # the rooms "worker" and "monitor"


@server.on("work:announce")
async def announce(_ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
    plan = Message("work:plan", data=msg.raw)  # as it came, never decoded
    result = await hub.emit_with_ack(Target.room("worker"), plan, AckOptions(timeout=30.0))
    return asdict(result)  # expected, received, ...; acked, refused, silent: who, by name


async def watch() -> None:
    while True:
        await asyncio.sleep(1.0)
        now = datetime.now(UTC)
        pending = [ack for conn in hub.connections() for ack in hub.pending_acks(conn.id)]
        data = [
            {"message": ack.message.id, "user": ack.user_id, "waits": (now - ack.since).seconds}
            for ack in pending
        ]
        await hub.broadcast_room("monitor", "acks:open", data=data)


server.background(watch)

if __name__ == "__main__":
    server.run(port=int(os.environ.get("PORT", "8080")))
