"""What ``test_offline_kill`` kills: a server that stores, or a process that only writes.

``python offline_app.py serve PATH FIRST`` serves, prints ``port N``, and sends numbered
messages to ada from ``FIRST`` on (none for -1), several at a time; ``python offline_app.py
write PATH FIRST`` stores without a server. What was reported as stored or as acked is printed,
a line for each, in one write.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from itertools import count
from typing import Any

from eyewall import ConnMeta, Message, SendOptions, Server, UserId
from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.domain.envelope import Priority
from eyewall.domain.mailbox import StoredMessage

ADA = UserId("ada")
SENDERS = 4
STORE = SendOptions(offline="store", ack_timeout=0.05)
"""Short: most of what ada does not answer at once is stored while she is there."""


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def by_name(handshake: Any) -> ConnMeta:
    return ConnMeta(user_id=handshake.query.get("name"))


async def send(server: Server, numbers: Any) -> None:
    for number in numbers:
        message = Message("news", data=number, id=f"m{number}-{os.getpid()}")
        report = await server.hub.send_to_user(ADA, message, STORE)
        outcome = "stored" if report.stored else "acked" if report.success else "lost"
        say(outcome, message.id, number)


async def serve(path: str, first: int) -> None:
    store = SqliteOffline(path, max_messages=1_000_000, max_bytes=1 << 30)
    server = Server(offline=store, authenticator=by_name)
    await server.start(port=0)
    say("port", server.port)
    numbers = count(first)
    if first >= 0:
        await asyncio.gather(*(send(server, numbers) for _ in range(SENDERS)))
    await asyncio.Event().wait()


async def write(path: str, first: int) -> None:
    store = SqliteOffline(path, max_messages=1_000_000, max_bytes=1 << 30)
    await store.open()
    numbers = count(first)

    async def writer() -> None:
        for number in numbers:
            payload = b"%d" % number * 200
            kept = StoredMessage(f"m{number}", payload, Priority.NORMAL, datetime.now(UTC))
            await store.store(ADA, kept)
            say("stored", kept.id, number)

    await asyncio.gather(*(writer() for _ in range(SENDERS)))


if __name__ == "__main__":
    what, path, first = sys.argv[1:]
    asyncio.run({"serve": serve, "write": write}[what](path, int(first)))
