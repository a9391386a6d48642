"""A live dashboard: the last value at once, the minutes before it, and new values.

    python examples/live_dashboard.py

Open http://localhost:8080/: the page joins the room with `since: 1`, which brings the newest
value before anything else, and asks for the history to draw its chart. Reload it, cut the
network, come back after a minute: nothing is missing. Its files are in `static`.
"""

import asyncio
import os
import random
from datetime import UTC, datetime
from pathlib import Path

from tornado.web import StaticFileHandler

from eyewall import RoomOptions, Server

KEPT = 120  # values: two minutes
FILES = {"path": Path(__file__).with_name("static"), "default_filename": "live_dashboard.html"}
EVERY = float(os.environ.get("EVERY", "1"))  # seconds between two

server = Server(client_commands={"join", "history"})  # pages may not publish


class Gauge:
    """A random walk; stands for what you measure."""

    def __init__(self) -> None:
        self.requests, self.latency = 240.0, 18.0

    def read(self) -> dict[str, object]:
        pull = (240 - self.requests) / 12
        self.requests = max(0.0, self.requests + pull + random.gauss(0, 16))
        self.latency = max(3.0, 8 + self.requests / 24 + random.gauss(0, 1.2))
        return {
            "at": datetime.now(UTC),
            "requests": round(self.requests),
            "latency": round(self.latency, 1),
            "viewers": server.hub.stats().connections,
        }


async def produce() -> None:
    gauge = Gauge()
    while True:
        await server.hub.broadcast_room("metrics", "metrics:value", "message", gauge.read())
        await asyncio.sleep(EVERY)


@server.on_startup
async def begin() -> None:
    await server.hub.create_room("metrics", RoomOptions(history_size=KEPT))
    server.background(produce)


if __name__ == "__main__":
    pages = [(r"/((?:[a-z_]+\.(?:css|js))?)", StaticFileHandler, FILES)]
    server.run(port=int(os.environ.get("PORT", "8080")), pages=pages)
