"""The smallest server: it sends each message back.

    python examples/echo.py
    python -m websockets ws://localhost:8080/ws

The second line, in another window, is a client. Type:

    {"topic": "echo:ping", "data": {"text": "hello"}}
"""

import os
from dataclasses import dataclass

from eyewall import Context, Envelope, Server

server = Server()


@dataclass
class Ping:
    text: str


@server.on("echo:ping")
async def ping(ctx: Context, msg: Envelope[Ping]) -> None:
    await ctx.send("echo:pong", "message", {"echo": msg.data.text})


if __name__ == "__main__":
    server.run(port=int(os.environ.get("PORT", "8080")))
