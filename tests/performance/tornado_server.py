"""Tornado by itself, as its documentation shows: a handler class and ``write_message``.

Nagle's algorithm is off, compression and pings are off, and nobody is asked who they
are: less than what the hub does in the same scenario.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, ClassVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from tests.performance.serving import (
    MESSAGE_IDS,
    die_with_parent,
    encode,
    orders,
    published,
    say_ready,
    tls_context,
)

ROOM_SIZE = 10


class Quick(WebSocketHandler):
    compression: ClassVar[dict[str, Any] | None] = None
    """What Tornado asks for: None is off, an empty dict on, with its own defaults."""

    def open(self) -> None:
        self.set_nodelay(True)

    def get_compression_options(self) -> dict[str, Any] | None:
        return self.compression


class Echo(Quick):
    """Answers with what came in, unread."""

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


class Member(Quick):
    """Everybody is in the one room."""

    members: ClassVar[set[Member]] = set()

    def open(self) -> None:
        super().open()
        self.members.add(self)

    def on_close(self) -> None:
        self.members.discard(self)


class Chatter(Quick):
    """Ten users to a room: what one says, all ten hear, and the one gets an ack."""

    rooms: ClassVar[dict[str, set[Chatter]]] = {}

    def open(self) -> None:
        super().open()
        self.user = self.get_query_argument("user")
        self.room = f"room-{int(self.user[1:]) // ROOM_SIZE}"
        self.rooms.setdefault(self.room, set()).add(self)

    def on_message(self, message: str | bytes) -> None:
        asked = json.loads(message)
        topic = asked["topic"]
        data = {"from": self.user, "text": asked["data"]["text"]}
        said = encode({"id": f"m{next(MESSAGE_IDS):019}", "topic": topic, "data": data})
        for member in self.rooms[self.room]:
            member.write_message(said)
        outcome = {"message_id": asked["id"], "status": "ok"}
        ack = {"ref": asked["id"], "topic": topic, "event": "ack", "data": outcome}
        self.write_message(encode(ack))

    def on_close(self) -> None:
        self.rooms[self.room].discard(self)


def publish(data: dict[str, object]) -> None:
    message = published(data)
    for member in Member.members:
        member.write_message(message)


async def main(certificate: str) -> None:
    app = Application([("/echo", Echo), ("/room", Member), ("/chat", Chatter)])
    sockets = bind_sockets(0, "127.0.0.1", backlog=1024)
    server = HTTPServer(app, ssl_options=tls_context(certificate))
    server.add_sockets(sockets)
    say_ready(sockets[0].getsockname()[1])
    async for order in orders():
        for data in order.payloads():
            publish(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls", default="", metavar="FOLDER")
    parser.add_argument("--deflate", action="store_true")
    arguments = parser.parse_args()
    die_with_parent()
    if arguments.deflate:
        Quick.compression = {}
    asyncio.run(main(arguments.tls))
