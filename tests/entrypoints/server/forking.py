"""A program with a server at its top that forks, in one of the ways of ``WAYS``.

Run as ``python forking.py WAY``. Each process that serves writes a line of JSON to standard
output, and ends when standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from tornado.web import Application

from eyewall import Context, EyewallError, Server

server = Server()


@server.on("who")
def who(ctx: Context, msg: object) -> dict[str, object]:
    return {"pid": os.getpid(), "node_id": ctx.hub.node_id}


async def serve(port: int | None = 0) -> None:
    """Run the server until standard input ends."""
    await server.start(port=port)
    tell(port=server.port, node_id=server.hub.node_id)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(0, ended.set)
    await ended.wait()
    await server.shutdown(timeout=1)


def tell(**what: object) -> None:
    line = json.dumps({"pid": os.getpid(), **what}) + "\n"
    os.write(1, line.encode())  # in one piece: several processes write


def fork() -> None:
    """Parent and child serve, each on a port of its own."""
    os.fork()
    asyncio.run(serve())


def prefork() -> None:
    """Two children of Tornado's accept from one port; the parent only watches them."""
    sockets = bind_sockets(0, "127.0.0.1")
    app = Application(server.routes("/ws"))
    fork_processes(2)

    async def main() -> None:
        http = HTTPServer(app)
        http.add_sockets(sockets)
        serving = asyncio.ensure_future(serve(port=None))
        tell(accepts=sockets[0].getsockname()[1])
        await serving
        http.stop()

    asyncio.run(main())


def running() -> None:
    """A running server forks: the child can do nothing with it, and the parent goes on."""

    async def main() -> None:
        started = asyncio.Event()
        server.background(started.set)
        serving = asyncio.ensure_future(serve())
        await started.wait()
        if (child := os.fork()) == 0:
            refuse()
            os._exit(0)
        os.waitpid(child, 0)
        tell(forked=True)
        await serving

    asyncio.run(main())


def refuse() -> None:
    for name in ("start", "shutdown"):
        coroutine = getattr(server, name)()
        try:
            coroutine.send(None)
        except EyewallError as error:
            tell(tried=name, error=type(error).__name__, text=str(error))


WAYS = {"fork": fork, "prefork": prefork, "running": running}

if __name__ == "__main__":
    WAYS[sys.argv[1]]()
