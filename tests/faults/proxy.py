"""A TCP proxy between a client and a server that fails the way networks do.

It runs in a thread of its own, so that tests with or without an event loop use it
alike:

    with TcpProxy("127.0.0.1", server_port) as proxy:
        connect(proxy.port)
        proxy.cut()  # every connection breaks, new ones go through
        proxy.stall()  # nothing passes any more, and nobody is told
        proxy.refuse()  # nobody gets in; who is in stays in
        proxy.resume()  # all is well again
        proxy.delay = 0.2  # seconds that everything takes longer, each way
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.ports import free_port

T = TypeVar("T")

CHUNK = 64 * 1024
WITHIN = 30.0
"""Seconds that a command to the proxy may take."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a close that tells the other side with RST, not FIN."""


class TcpProxy:
    """Listens on ``port`` and passes everything on to ``host`` and ``target``."""

    def __init__(self, host: str, target: int, *, port: int | None = None) -> None:
        self.port = port if port is not None else free_port()
        self.delay = 0.0
        self.accepted = 0
        """How many connections have come, counting those that are gone."""
        self._upstream = (host, target)
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._pairs)

    # --- what a test does with it

    def start(self) -> None:
        self._thread.start()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._run(self._listen())

    def stop(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN)
        self._loop.close()

    def cut(self) -> None:
        """Break every connection at once, with a reset. New ones go through."""
        self._call(self._cut)

    def stall(self) -> None:
        """Let nothing pass, in either direction. Connections stay, and new ones are taken."""
        self._call(self._flowing.clear)

    def refuse(self) -> None:
        """Refuse new connections, as where nobody listens. Those that are there stay."""
        self._run(self._deafen())

    def resume(self) -> None:
        """Undo ``stall`` and ``refuse``: what was held up goes on, nothing is lost."""
        self._call(self._flowing.set)
        self._run(self._listen())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- what happens in its thread

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WITHIN)

    def _call(self, work: Callable[[], None]) -> None:
        async def call() -> None:
            work()

        self._run(call())

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, limit=CHUNK
            )

    async def _deafen(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            # The sockets are gone from the loop only after its next turn.
            await asyncio.sleep(0)

    def _cut(self) -> None:
        for pair in tuple(self._pairs):
            pair.reset()

    async def _end(self) -> None:
        await self._deafen()
        self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self.accepted += 1
        try:
            from_server, to_server = await asyncio.open_connection(*self._upstream, limit=CHUNK)
        except OSError:
            _reset(to_client)
            return
        pair = _Pair(self, to_client, to_server)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(pair.carry(from_client, to_server))
                both.create_task(pair.carry(from_server, to_client))
        except* OSError:
            pair.reset()
        finally:
            self._pairs.discard(pair)
            for writer in (to_client, to_server):
                writer.close()


class _Pair:
    """One client's connection and the one to the server that stands behind it."""

    def __init__(
        self, proxy: TcpProxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._writers = (client, server)

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one direction on: read ahead by a little, write when it is due."""
        ahead: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._read(reader, ahead))
            both.create_task(self._write(ahead, writer))

    async def _read(
        self, reader: asyncio.StreamReader, ahead: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            # Stalled: read nothing, so that the sender's own buffers fill up.
            await self._proxy._flowing.wait()
            chunk = await reader.read(CHUNK)
            await ahead.put((now() + self._proxy.delay, chunk))
            if not chunk:
                return

    async def _write(
        self, ahead: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, chunk = await ahead.get()
            await asyncio.sleep(due - now())
            await self._proxy._flowing.wait()
            if not chunk:
                if writer.can_write_eof() and not writer.is_closing():
                    writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
