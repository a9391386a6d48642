"""The end of an HTTP connection that the server ends: its answer arrives.

A socket that is closed with unread input is reset, and the reset takes away what the client
has not read yet. So our side is closed first, and what the client still sends is thrown away
until it closes too (RFC 9112, 9.6).

Rules of this file:

1. Who goes on sending, or never closes, has ``WITHIN`` seconds.
2. No more than ``MOST`` are seen out at the same time: one more cuts off the first of them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final

from tornado.iostream import IOStream, SSLIOStream, UnsatisfiableReadError

from eyewall.adapters.web.sockets.link import DISCARD
from eyewall.adapters.web.sockets.tcp import Carrier, vacate
from eyewall.adapters.web.sockets.tls import TlsSocket

WITHIN: Final = 2.0
"""Seconds that a client has to take its answer and to close: some round trips of the worst
networks. What it sends meanwhile is of no use to anybody."""

MOST: Final = 1024
"""Connections that are seen out at the same time. Each is a descriptor, and some kernel
memory."""


class Partings:
    """Sees sockets out that have been answered."""

    def __init__(self) -> None:
        self._leaving: dict[socket.socket, tuple[Carrier, float]] = {}
        """With the deadline of each. All have as long, so they stand in its order."""
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    def add(self, sock: socket.socket, last: bytes) -> None:
        """Write ``last``, as far as it goes at once, then close our side and read on."""
        carrier = TlsSocket(sock) if isinstance(sock, ssl.SSLSocket) else sock
        loop = asyncio.get_running_loop()
        try:
            if last:
                carrier.send(last)
            carrier.shutdown(socket.SHUT_WR)
            loop.add_reader(sock, self._read, sock)
        except (OSError, ValueError):
            sock.close()
            return
        if len(self._leaving) >= MOST:
            self._end(next(iter(self._leaving)))
        self._empty.clear()
        self._leaving[sock] = carrier, loop.time() + WITHIN
        if self._timer is None:
            self._timer = loop.call_later(WITHIN, self._look)

    async def done(self, within: float) -> None:
        """Return when all have left, or the time is over."""
        if self._leaving:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._empty.wait()

    def close(self) -> None:
        """Cut off those that are left."""
        for sock in list(self._leaving):
            self._end(sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self, sock: socket.socket) -> None:
        try:
            ended = not self._leaving[sock][0].recv(DISCARD)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._end(sock)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for sock, (_, deadline) in list(self._leaving.items()):
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._look)
                break
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        del self._leaving[sock]
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        if not self._leaving:
            self._empty.set()


class Parting(IOStream):
    """A stream whose end does not take away what was written to it.

    ``partings`` and ``overlong`` are set before it is read.
    """

    partings: Partings
    overlong: bytes
    """The last word to a client of whom more came before an end than may: until when it is
    looked for, Tornado's own does not answer."""

    def close(self, exc_info: Any = False) -> None:
        if isinstance(exc_info, UnsatisfiableReadError):
            self.part(self.overlong, exc_info)
        else:
            super().close(exc_info)

    def part(self, last: bytes = b"", exc_info: Any = False) -> None:
        """Close it as soon as the client does, after a last word."""
        sock: socket.socket | None = None
        if not self.closed() and not self.writing():
            sock = self.socket
            self.socket = vacate(sock)
        super().close(exc_info)
        if sock is not None:
            self.partings.add(sock, last)


class TlsParting(Parting, SSLIOStream):
    """The same with TLS."""
