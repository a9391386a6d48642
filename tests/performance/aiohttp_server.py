"""aiohttp, as its documentation shows: a handler that loops, ``send_str`` to each member."""

from __future__ import annotations

from aiohttp import WSMsgType, web

from tests.performance.serving import die_with_parent, orders, published, run, say_ready

MEMBERS: set[web.WebSocketResponse] = set()


async def handle(request: web.Request) -> web.WebSocketResponse:
    """Answer with what came in; on ``/room`` be a member for as long as it lasts."""
    connection = web.WebSocketResponse(compress=False)
    await connection.prepare(request)
    if request.path == "/room":
        MEMBERS.add(connection)
    try:
        async for message in connection:
            if message.type is WSMsgType.TEXT:
                await connection.send_str(message.data)
    finally:
        MEMBERS.discard(connection)
    return connection


async def main() -> None:
    app = web.Application()
    app.add_routes([web.get("/room", handle), web.get("/echo", handle)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    say_ready(runner.addresses[0][1])
    async for order in orders():
        for data in order.payloads():
            message = published(data)
            for member in MEMBERS:
                await member.send_str(message)


if __name__ == "__main__":
    die_with_parent()
    run(main)
