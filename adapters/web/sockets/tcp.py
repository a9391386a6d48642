"""A link on a TCP socket that was detached from its Tornado stream.

The stream serves the HTTP handshake. Then it is closed without its socket: the descriptor leaves
the event loop and stays open, and the link reads and writes it directly. For TLS see ``tls``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from tornado.iostream import IOStream

from eyewall.adapters.web.protocol.frames import WebSocketFormat
from eyewall.adapters.web.sockets.link import CLOSED, DISCARD_SIZE, OPEN, READ_SIZE, SocketLink
from eyewall.adapters.web.sockets.loop import SocketLoop
from eyewall.adapters.web.sockets.poller import READ, WRITE
from eyewall.application.ports.message import Codec

MAX_UNSENT_BYTES: Final = 64 * 1024
"""Unsent bytes that the kernel accepts. Without the bound, a peer that stopped reading is
noticed only after some 4 MiB of kernel memory."""

_NOTSENT_LOWAT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class NonBlockingSocket(Protocol):
    """A socket, as a link uses it: it never blocks, and raises ``OSError``."""

    def recv(self, size: int, /) -> bytes: ...

    def send(self, data: bytes | memoryview, /) -> int: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


class _SocketPlaceholder:
    """Replaces the socket of a stream: it has the same descriptor, and closes nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Do nothing: the descriptor has a new owner."""


def socket_placeholder(sock: socket.socket) -> Any:
    """Return a replacement that a stream can close while ``sock`` stays open."""
    return _SocketPlaceholder(sock.fileno())


async def detach_socket(stream: IOStream, within: float) -> tuple[socket.socket, bytes]:
    """Close a stream without its socket. Returns the socket, and the bytes read ahead.

    Waits up to ``within`` seconds until the stream's write buffer is written. Raises ``OSError``
    if the peer is gone or does not take it in time.
    """
    if stream.writing():
        try:
            async with asyncio.timeout(within):
                await stream.write(b"")
        except TimeoutError as error:
            raise ConnectionAbortedError from error
        finally:
            if stream.writing():
                stream.close()
    if stream.closed():
        raise ConnectionResetError
    sock = stream.socket
    ahead = bytes(stream._read_buffer)  # noqa: SLF001  (there is no public way)
    if isinstance(sock, ssl.SSLSocket):
        while waiting := sock.pending():  # a stream may read less at a time than a record
            ahead += sock.recv(waiting)
    stream.socket = socket_placeholder(sock)
    stream.close()
    return sock, ahead


class TcpLink(SocketLink):
    """Reads and writes its socket when the poller reports it ready."""

    __slots__ = ("_fd", "_interest", "_socket")

    _socket: NonBlockingSocket

    def __init__(
        self, io: SocketLoop, codec: Codec, wire: WebSocketFormat, sock: socket.socket
    ) -> None:
        super().__init__(io, codec, wire)
        self._socket = sock
        self._fd = sock.fileno()
        self.write = sock.send
        self._interest = 0
        try:
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if _NOTSENT_LOWAT is not None:
                    sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, MAX_UNSENT_BYTES)
            io.poller.watch(self._fd, self, 0)
        except OSError:
            self._close_now()
            raise

    def answer(self, head: bytes) -> None:
        """Write the answer to the handshake, before any frame. Raises ``OSError``."""
        try:
            sent = self.write(head)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close_now()
            raise
        if sent < len(head):
            self._begin_backlog(memoryview(head)[sent:])

    def on_readable(self) -> None:
        if self.state == OPEN:
            if not self._reading:  # not watched for input, so this is the end or an error
                self._on_read_error(None)
                return
            if self._parser is not None and self._parser.has_more:
                return  # rescheduled already
            size = READ_SIZE
        else:
            size = DISCARD_SIZE
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            return
        except OSError as error:
            self._on_read_error(error)
            return
        self.last_seen = self.io.now
        if not data:
            self._eof_received()
        elif self.state == OPEN:
            self._data_received(data)
        else:
            self._discard_input(data)

    @property
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        return self._socket.send

    def _adjust(self) -> None:
        self._watch((READ if self.wants_read else 0) | (WRITE if self.wants_write else 0))

    def _watch(self, interest: int) -> None:
        if interest != self._interest and self.state != CLOSED:
            self._interest = interest
            self.io.poller.watch(self._fd, self, interest)

    def _shutdown_write(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def _close_socket(self) -> None:
        self.io.poller.unwatch(self._fd)  # before the descriptor can be reused
        self._socket.close()
