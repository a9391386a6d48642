"""Takes plain connections and passes their bytes on over TLS, for a suite that has none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.certificate import tls_contexts


@contextlib.asynccontextmanager
async def tunnel(port: int) -> AsyncIterator[int]:
    """Pass on to ``port`` of this machine; yields the port to connect to."""
    connections: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await join(reader, writer, port)
        finally:
            connections.discard(task)

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Carry bytes both ways until one side has ended."""
    context = tls_contexts()[1]
    there, back = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        ways = [asyncio.create_task(pipe(reader, back)), asyncio.create_task(pipe(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    finally:
        for end in (writer, back):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def pipe(source: asyncio.StreamReader, into: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            into.write(data)
            await into.drain()
