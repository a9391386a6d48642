"""``websockets``, as its documentation shows: ``broadcast`` to a set of connections."""

from __future__ import annotations

from websockets.asyncio.server import ServerConnection, broadcast, serve

from tests.performance.serving import die_with_parent, orders, published, run, say_ready

MEMBERS: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    """Answer with what came in; on ``/room`` be a member for as long as it lasts."""
    assert connection.request is not None
    if connection.request.path == "/room":
        MEMBERS.add(connection)
    try:
        async for message in connection:
            await connection.send(message)
    finally:
        MEMBERS.discard(connection)


async def main() -> None:
    # Compression, pings and their tasks are what its pages on memory and speed say to drop.
    async with serve(
        handle, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=1024
    ) as server:
        say_ready(next(iter(server.sockets)).getsockname()[1])
        async for order in orders():
            for data in order.payloads():
                broadcast(MEMBERS, published(data))


if __name__ == "__main__":
    die_with_parent()
    run(main)
