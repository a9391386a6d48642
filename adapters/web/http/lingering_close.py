"""Lingering close: a connection that the server closes behind an answer is not reset.

A socket that is closed with unread input is reset, and a reset discards what the client has
not read yet. So the server closes its side first, and discards the client's input until the
client closes too (RFC 9112, 9.6).

Rules of this file:

1. A client that goes on sending, or never closes, has ``LINGER_TIMEOUT`` seconds.
2. At most ``MAX_LINGERING`` connections linger at the same time. One more aborts the oldest.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final

from tornado.iostream import IOStream, SSLIOStream, UnsatisfiableReadError

from eyewall.adapters.web.sockets.link import DISCARD_SIZE
from eyewall.adapters.web.sockets.tcp import NonBlockingSocket, socket_placeholder
from eyewall.adapters.web.sockets.tls import TlsSocket

LINGER_TIMEOUT: Final = 2.0
"""Seconds that a client has to read its answer and to close: some round trips of the worst
networks."""

MAX_LINGERING: Final = 1024
"""Connections that linger at the same time. Each is a descriptor, and some kernel memory."""


class LingeringCloser:
    """Closes sockets without a reset."""

    def __init__(self) -> None:
        self._lingering: dict[socket.socket, tuple[NonBlockingSocket, float]] = {}
        """The sockets with their deadlines, in that order: all have equally long."""
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    def add(self, sock: socket.socket, answer: bytes) -> None:
        """Write ``answer`` as far as the kernel takes it, close the server's side, and read until
        the client closes."""
        connection = TlsSocket(sock) if isinstance(sock, ssl.SSLSocket) else sock
        loop = asyncio.get_running_loop()
        try:
            if answer:
                connection.send(answer)
            connection.shutdown(socket.SHUT_WR)
            loop.add_reader(sock, self._read, sock)
        except (OSError, ValueError):
            sock.close()
            return
        if len(self._lingering) >= MAX_LINGERING:
            self._close(next(iter(self._lingering)))
        self._empty.clear()
        self._lingering[sock] = connection, loop.time() + LINGER_TIMEOUT
        if self._timer is None:
            self._timer = loop.call_later(LINGER_TIMEOUT, self._check_deadlines)

    async def wait_closed(self, within: float) -> None:
        """Return when all sockets are closed, or after ``within`` seconds."""
        if self._lingering:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._empty.wait()

    def close(self) -> None:
        """Close the sockets that are left."""
        for sock in list(self._lingering):
            self._close(sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self, sock: socket.socket) -> None:
        try:
            ended = not self._lingering[sock][0].recv(DISCARD_SIZE)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._close(sock)

    def _check_deadlines(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for sock, (_, deadline) in list(self._lingering.items()):
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._check_deadlines)
                break
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        del self._lingering[sock]
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        if not self._lingering:
            self._empty.set()


class LingeringStream(IOStream):
    """A Tornado stream that can be closed without a reset.

    ``closer`` and ``overflow_answer`` are set before it is read.
    """

    closer: LingeringCloser
    overflow_answer: bytes
    """What a client is answered that exceeds the size of the header fields, or of the line of a
    chunk. Tornado closes such a connection without an answer."""

    def close(self, exc_info: Any = False) -> None:
        if isinstance(exc_info, UnsatisfiableReadError):
            self.close_gracefully(self.overflow_answer, exc_info)
        else:
            super().close(exc_info)

    def close_gracefully(self, answer: bytes = b"", exc_info: Any = False) -> None:
        """Write ``answer``, and close when the client closes."""
        sock: socket.socket | None = None
        if not self.closed() and not self.writing():
            sock = self.socket
            self.socket = socket_placeholder(sock)
        super().close(exc_info)
        if sock is not None:
            self.closer.add(sock, answer)


class TlsLingeringStream(LingeringStream, SSLIOStream):
    """The same over TLS."""
