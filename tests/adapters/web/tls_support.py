"""A TLS client that can end in every way: in TLS, on its socket only, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.adapters.web.support import PATIENCE, Served, masked, request

GOODBYE = masked(b"\x03\xe8", 0x88)


class TlsPeer:
    """Encrypts by hand, over a socket of its own."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = sock
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    async def handshake(self) -> None:
        await self._pump(self._tls.do_handshake)

    async def upgrade(self) -> None:
        """Shake hands, and have the request answered with 101."""
        await self.handshake()
        await self.write(request())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await self.read(1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    async def write(self, data: bytes) -> None:
        """Send ``data``, in records of its own."""
        await self._pump(lambda: self._tls.write(data))

    async def read(self, size: int = 1 << 16) -> bytes:
        """Return what comes, nothing at an end that was said in TLS. Raises ``SSLEOFError``
        at one that was not."""
        try:
            return bytes(await self._pump(lambda: self._tls.read(size)))
        except ssl.SSLZeroReturnError:  # instead of nothing, when our end was said too
            return b""

    async def rest(self) -> bytes:
        """Return all that comes before an end that was said in TLS."""
        data = b""
        while more := await self.read():
            data += more
        return data

    async def answered(self) -> bytes:
        """Answer the close frame, which is next; return it, when the end was said in TLS
        behind it."""
        data = await self.read()
        await self.write(GOODBYE)
        return data + await self.rest()

    async def say_end(self) -> None:
        """Say in TLS that nothing more comes; it may still be read from."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    async def spoil(self) -> None:
        """Send a record that does not decrypt."""
        garbage = b"\x17\x03\x03\x00\x20" + b"?" * 32
        await asyncio.get_running_loop().sock_sendall(self.socket, garbage)

    def end_unsaid(self) -> None:
        """End on the socket, without a word in TLS."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def _pump(self, act: Callable[[], Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    result = act()
                except ssl.SSLWantReadError:
                    await self._flush()
                    data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
                    if data:
                        self._in.write(data)
                    else:
                        self._in.write_eof()
                else:
                    await self._flush()
                    return result

    async def _flush(self) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, self._out.read())


@contextlib.asynccontextmanager
async def tls_peer(here: Served, *, upgraded: bool = True) -> AsyncIterator[TlsPeer]:
    """Connect; with ``upgraded``, as far as to an open WebSocket."""
    assert here.tls is not None
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", here.port))
        peer = TlsPeer(sock, here.tls)
        if upgraded:
            await peer.upgrade()
        yield peer
