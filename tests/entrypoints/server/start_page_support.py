"""A server that is run as a newcomer runs it: by ``server.run()``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from eyewall import Context, Envelope, Server
from tests.entrypoints.wire import WITHIN


def echoing(**options: Any) -> Server:
    """The server of the README's ten lines."""
    server = Server(**options)

    @server.on("echo:ping")
    async def ping(ctx: Context, msg: Envelope) -> None:
        await ctx.send("echo:pong", "message", {"echo": msg.data["text"]})

    return server


class Running(NamedTuple):
    """A server that runs in a thread."""

    server: Server
    port: int
    loop: asyncio.AbstractEventLoop

    def call(self, work: Any) -> Any:
        """Await something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WITHIN)


@contextmanager
def run(server: Server, **options: Any) -> Iterator[Running]:
    """Let ``server.run()`` serve in a thread, on a free port."""
    up = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    @server.on_startup
    async def started() -> None:
        loops.append(asyncio.get_running_loop())
        up.set()

    thread = threading.Thread(target=server.run, kwargs={"port": 0, **options}, daemon=True)
    thread.start()
    assert up.wait(WITHIN)
    assert server.port is not None
    try:
        yield Running(server, server.port, loops[0])
    finally:
        asyncio.run_coroutine_threadsafe(server.shutdown(0), loops[0])
        thread.join(WITHIN)
        assert not thread.is_alive()
