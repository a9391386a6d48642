"""Retries with back-off, handlers for failures, and a store for users who are offline.

    python examples/retries.py
    python -m websockets "ws://localhost:8080/ws?name=ada"

    {"topic": "order:ship", "data": {"customer": "bob", "order": 7}, "ack": true, "id": "1"}

Bob is offline, so the order is stored. Let him come (?name=bob): it is delivered, until he
confirms it by its id, {"event": "ack", "ref": "ITS ID"}. Ship again: four tries are made while
he does not confirm, then it is stored. The log has the failures.
"""

import os
from dataclasses import dataclass
from typing import Any

from eyewall import (
    ConnMeta,
    Context,
    Envelope,
    Failure,
    Handshake,
    Message,
    RetryPolicy,
    SendOptions,
    Server,
    UserId,
)
from eyewall.adapters.offline.memory import MemoryOffline


def by_name(handshake: Handshake) -> ConnMeta | None:
    name = handshake.query.get("name")
    return ConnMeta(user_id=UserId(name)) if name else None


server = Server(authenticator=by_name, offline=MemoryOffline())  # SqliteOffline(path) lasts
hub, log = server.hub, server.logger

# At most four tries, all under one id, with pauses of about 0.2, 0.4 and 0.8 s: less than the
# 5 s that clients wait for an answer.
POLICY = RetryPolicy(max_retries=3, base_delay=0.2, backoff_factor=2.0, jitter=0.1)
OPTIONS = SendOptions(offline="store", ack_timeout=0.7)  # stored if no device confirms


@dataclass
class Shipment:
    customer: str
    order: int


@server.on("order:ship")
async def ship(_ctx: Context, msg: Envelope[Shipment]) -> dict[str, Any]:
    note = Message("order:shipped", data={"order": msg.data.order})
    result = await hub.send_to_user_with_retry(msg.data.customer, note, POLICY, OPTIONS)
    return {"success": result.success, "tries": len(result.attempts)}


@hub.on_user_offline
def offline(failure: Failure) -> None:
    log.info("user_is_away", user_id=failure.recipient, data=failure.message.data)


@hub.on_timeout  # on_queue_full and on_connection_error are the others of this kind
def silent(failure: Failure) -> None:
    log.info("no_answer", conn_id=failure.recipient, reason=failure.reason)


@hub.on_send_failure  # every failure, after the handler for its kind
def failed(failure: Failure) -> None:
    log.warning("not_delivered", to=failure.recipient, reason=failure.reason)


if __name__ == "__main__":
    server.run(port=int(os.environ.get("PORT", "8080")))
