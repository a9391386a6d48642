"""A connection on a plain TCP socket, taken over from Tornado.

Tornado's stream has served the handshake. Its socket is duplicated, and the stream is
closed, which takes the old descriptor out of the event loop without a shutdown. From
then on nothing stands between the link and the kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from tornado.iostream import IOStream

from eyewall.adapters.web.link import CHUNK, SocketLink
from eyewall.adapters.web.node import Node
from eyewall.adapters.web.outgoing import GONE, OPEN
from eyewall.adapters.web.poller import READ, WRITE
from eyewall.adapters.web.wire import SocketWire
from eyewall.application.ports import Codec

UNSENT: Final = 64 * 1024
"""Bytes that the kernel takes beyond what is on its way. Without a bound a peer that
stopped reading is noticed only after some 4 MiB of kernel memory."""

_NOTSENT_LOWAT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)


def can_be_taken(stream: IOStream) -> bool:
    """Whether the stream is a plain socket with nothing left to write."""
    return type(stream) is IOStream and not stream.writing() and hasattr(stream, "_read_buffer")


def take_socket(stream: IOStream) -> tuple[socket.socket, bytes]:
    """Return the stream's socket and what it has read ahead; the stream is closed.

    Raises ``OSError`` when there is no descriptor left, and changes nothing then.
    """
    sock = stream.socket.dup()  # which does not block either
    ahead = bytes(stream._read_buffer)  # noqa: SLF001  (there is no public way)
    stream.close()
    return sock, ahead


class PlainLink(SocketLink):
    """Reads and writes its socket itself, when the poller says so."""

    __slots__ = ("_fd", "_interest", "_socket")

    def __init__(self, node: Node, codec: Codec, wire: SocketWire, sock: socket.socket) -> None:
        super().__init__(node, codec, wire)
        self._socket = sock
        self._fd = sock.fileno()
        self.write = sock.send
        self._interest = 0
        try:
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if _NOTSENT_LOWAT is not None:
                    sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT)
            node.poller.watch(self._fd, self, 0)
        except OSError:
            self._gone()
            raise

    def on_readable(self) -> None:
        if self.state == OPEN:
            if not self._reading:  # nobody asked to read, so this is the end
                self._read_failed(None)
                return
            if self._parser is not None and self._parser.more:
                return  # it has a turn of its own coming
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._read_failed(error)
            return
        self.last_seen = self.node.now
        if not data:
            self._end_of_input()
        elif self.state == OPEN:
            self._take_in(data)

    @property
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        return self._socket.send

    def _adjust(self) -> None:
        interest = (READ if self.wants_read else 0) | (WRITE if self.wants_write else 0)
        if interest != self._interest and self.state != GONE:
            self._interest = interest
            self.node.poller.watch(self._fd, self, interest)

    def _shut_writing(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def _release(self) -> None:
        self.node.poller.forget(self._fd)  # before the number can be another's
        self._socket.close()
