"""python-socketio, as its documentation shows: an ASGI application on uvicorn.

Everybody is in the one room that Socket.IO itself makes; ``emit`` without a receiver
reaches all of it.
"""

from __future__ import annotations

import asyncio
import socket

import socketio
import uvicorn

from tests.performance.serving import die_with_parent, orders, run, say_ready

SIO = socketio.AsyncServer(
    async_mode="asgi", transports=["websocket"], async_handlers=False, http_compression=False
)


@SIO.event
async def ask(sid: str, data: dict[str, object]) -> None:
    """Answer with what came in."""
    await SIO.emit("answer", data, to=sid)


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        socketio.ASGIApp(SIO),
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        access_log=False,
        log_level="error",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    say_ready(listener.getsockname()[1])
    async for order in orders():
        for data in order.payloads():
            await SIO.emit("tick", data)
    serving.cancel()


if __name__ == "__main__":
    die_with_parent()
    run(main)
