"""A link on a TLS socket.

OpenSSL differs from a kernel's socket in four ways:

1. It buffers decrypted input, which the readiness of the descriptor does not show. So a read
   always has room for a whole record, and nothing stays in the buffer.
2. A refused write must be repeated with the same bytes. So one record is written at a time, and
   the frames of a refused record are not given to the drop policy.
3. A read may need a write, and a write may need a read (a key update, a renegotiation). The link
   then waits for that alone.
4. The close is announced in TLS first (close_notify), then on the socket. Many clients take
   close_notify for the end of both directions, and do not answer a close frame after it.
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
"""Bytes that a TLS record holds at most."""


class TlsSocket:
    """Makes an ``ssl.SSLSocket`` behave like a plain one. Implements ``NonBlockingSocket``."""

    __slots__ = ("_tls", "needs")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self.needs = 0
        """What OpenSSL waits for before it can go on: ``READ`` for a write, ``WRITE`` for a
        read, otherwise 0."""

    def recv(self, size: int) -> bytes:
        """Return the next record. ``size`` is at least that of a record.

        After ``shutdown`` the result is undecrypted input, to be discarded.
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
        """Send close_notify, then close this side of the socket."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantWriteError:
            self.needs = WRITE
            return  # to be called again
        except (OSError, ValueError):
            pass  # sent and not answered yet, or the session is broken
        self._tls.shutdown(how)  # ends the TLS session too: input is not decrypted any more

    def close(self) -> None:
        """Close the socket, after close_notify if it was not sent."""
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
            self._retry()
            return
        super().on_readable()
        if self._socket.needs:
            self._adjust()

    def on_writable(self) -> None:
        if self._socket.needs:
            self._retry()
        else:
            super().on_writable()

    def _retry(self) -> None:
        """Repeat the operation for which OpenSSL needed the other direction."""
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
    """Return the link for a detached socket. Raises ``OSError``."""
    if isinstance(sock, ssl.SSLSocket):
        return TlsLink(io, codec, wire, sock)
    return TcpLink(io, codec, wire, sock)
