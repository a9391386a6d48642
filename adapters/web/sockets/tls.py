"""A connection on a TLS socket that was taken over.

OpenSSL differs from a kernel's socket in four ways, and this file is about those:

1. It keeps what it has decrypted. So a read always has room for a whole record, and
   nothing is left over that the descriptor would not tell of.
2. A refused write has to be repeated with the same bytes. So it is offered one record at
   a time, and the frames of a record that was refused are not given to the policy.
3. To read it may have to write, and to write it may have to read (a key update, a
   renegotiation). Then the link waits for that alone.
4. The end is said within TLS first, and by the socket after that. Many a client takes
   it for the end of both directions, and can't answer our close frame any more.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Final

from eyewall.adapters.web.protocol.frames import WebSocketFormat
from eyewall.adapters.web.sockets.link import CLOSED, FIN_SENT
from eyewall.adapters.web.sockets.loop import SocketLoop
from eyewall.adapters.web.sockets.poller import READ, WRITE
from eyewall.adapters.web.sockets.tcp import TcpLink
from eyewall.application.ports.message import Codec

TLS_RECORD_SIZE: Final = 16 * 1024
"""The most that a TLS record holds."""


class TlsSocket:
    """Has an ``ssl.SSLSocket`` answer as a plain socket would. Implements ``NonBlockingSocket``."""

    __slots__ = ("_tls", "needs")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self.needs = 0
        """What OpenSSL waits for before anything goes on: 0, or ``READ`` although it was
        to write, or ``WRITE`` although it was to read."""

    def recv(self, size: int) -> bytes:
        """Return the next record; ``size`` is no smaller than one.

        After ``shutdown`` it is whatever comes, to be thrown away.
        """
        try:
            return self._tls.recv(size)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.needs = WRITE
            raise BlockingIOError from None
        except ssl.SSLZeroReturnError:
            return b""

    def send(self, data: bytes | memoryview) -> int:
        write = self._tls.write  # unlike its ``send``, it never writes in the clear
        size = len(data)
        sent = 0
        try:
            if size <= TLS_RECORD_SIZE:
                return write(data)
            view = memoryview(data)
            while sent < size:
                sent += write(view[sent : sent + TLS_RECORD_SIZE])
        except ssl.SSLWantWriteError:
            if not sent:
                raise BlockingIOError from None
        except ssl.SSLWantReadError:
            self.needs = READ
            if not sent:
                raise BlockingIOError from None
        return sent

    def shutdown(self, how: int) -> None:
        """Say in TLS that nothing more comes, then close this side of the socket."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantWriteError:
            self.needs = WRITE
            return  # to be called again
        except (OSError, ValueError):
            pass  # said, and no answer yet; or beyond saying
        self._tls.shutdown(how)  # ends the session too, which takes no more of the peer's data

    def close(self) -> None:
        """Close, after a last word in TLS if there was none."""
        with suppress(OSError, ValueError):
            self._tls.unwrap()
        self._tls.close()


class TlsLink(TcpLink):
    """Reads and writes through OpenSSL."""

    __slots__ = ()

    retry_bytes = TLS_RECORD_SIZE

    _socket: TlsSocket

    def __init__(
        self, io: SocketLoop, codec: Codec, wire: WebSocketFormat, sock: ssl.SSLSocket
    ) -> None:
        super().__init__(io, codec, wire, sock)
        self._socket = TlsSocket(sock)
        self.write = self._socket.send

    def on_readable(self) -> None:
        waits = self._socket.needs
        if waits:
            self._go_on()
            return
        super().on_readable()
        if self._socket.needs:
            self._adjust()

    def on_writable(self) -> None:
        if self._socket.needs:
            self._go_on()
        else:
            super().on_writable()

    def _go_on(self) -> None:
        """Try again what OpenSSL could not do without something else."""
        self._socket.needs = 0
        if self.state == FIN_SENT:
            self._shutdown()
        else:
            super().on_writable()
        if self.state != CLOSED and self.wants_read:
            super().on_readable()
        self._adjust()

    def _adjust(self) -> None:
        if self._socket.needs:
            self._watch(self._socket.needs)
        else:
            super()._adjust()


def create_link(
    io: SocketLoop, codec: Codec, wire: WebSocketFormat, sock: socket.socket
) -> TcpLink:
    """Return the link for a socket that was taken over; raises ``OSError``."""
    if isinstance(sock, ssl.SSLSocket):
        return TlsLink(io, codec, wire, sock)
    return TcpLink(io, codec, wire, sock)
