"""A connection that stays on Tornado's stream.

That is TLS (what OpenSSL has decrypted already does not make a descriptor readable),
a stream that is still writing, and a plain one when there is no descriptor left to
duplicate its socket. Frames are written to the socket directly as long as it takes
them; the stream gets only what must go out next, one record at a time, so that what
waits is in our queue, where it is bounded.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from tornado.iostream import IOStream, StreamClosedError

from eyewall.adapters.web.link import CHUNK, SocketLink
from eyewall.adapters.web.node import Node
from eyewall.adapters.web.outgoing import GONE, OPEN
from eyewall.adapters.web.wire import SocketWire
from eyewall.application.ports import Codec
from eyewall.domain.connection import DisconnectReason

RECORD: Final = 16 * 1024
"""A TLS record. OpenSSL wants a refused write to be repeated with the same bytes."""


class StreamLink(SocketLink):
    """Reads by the stream's futures; is given its turns by the poller, as all are."""

    __slots__ = ("_closed", "_inbox", "_pending_read", "_piece", "_socket", "_stream")

    committed = RECORD

    def __init__(self, node: Node, codec: Codec, wire: SocketWire, stream: IOStream) -> None:
        super().__init__(node, codec, wire)
        self._stream = stream
        self._socket: socket.socket = stream.socket
        self._inbox = b""
        self._pending_read = False
        self._piece: int | None = None  # the size of what the stream is writing
        self._closed = False
        self.write = self._send
        stream.set_nodelay(True)
        stream.set_close_callback(self._on_closed)
        if stream.writing():
            self._backlog = self._new_backlog()
            self.write = self._hold
            self._give(b"")

    @property
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        return self._send

    def _send(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        sent = 0
        while sent < len(view):
            try:
                sent += self._socket.send(view[sent : sent + RECORD])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if sent:
                    break
                raise BlockingIOError from None
        return sent

    # --- writing what the socket did not take

    def _give(self, piece: bytes) -> None:
        """Have the stream write ``piece``, as soon as it can."""
        self._piece = len(piece)
        try:
            self._stream.write(piece).add_done_callback(self._on_written)
        except StreamClosedError as error:
            self._lose(DisconnectReason.WRITE_ERROR, error.real_error)

    def _on_written(self, future: asyncio.Future[None]) -> None:
        failed = future.cancelled() or future.exception() is not None
        piece, self._piece = self._piece, None
        if failed:
            self._lose(DisconnectReason.WRITE_ERROR, self._stream.error)
        elif self._backlog is not None and piece is not None:
            self._backlog.wrote(piece, self.node.clock.now())
            self._drain()

    # --- reading

    def on_readable(self) -> None:
        """Never called: it is the stream that watches the descriptor."""

    def on_turn(self) -> None:
        data = self._inbox
        more = self._parser is not None and self._parser.more
        if self.state != OPEN:
            self._inbox = b""
            if self._closed:
                self._read_failed(self._stream.error)
        elif (data or more) and (self.wants_read or self._closed):
            self._inbox = b""
            self._take_in(data)
        elif self._closed:
            self._read_failed(self._stream.error)
        self._adjust()

    def _adjust(self) -> None:
        """Have the stream read and write what it should."""
        if self.state == GONE:
            return
        more = self._parser is not None and self._parser.more
        if self._closed or (self._inbox and self.wants_read):
            self.node.poller.again(self)
        elif self.wants_read and not (self._pending_read or self._inbox or more):
            self._pending_read = True
            try:
                future = self._stream.read_bytes(CHUNK, partial=True)
                asyncio.ensure_future(future).add_done_callback(self._on_read)
            except StreamClosedError:
                self._on_closed()
        backlog = self._backlog
        if backlog is not None and self._piece is None:
            if backlog.choose(self.node.clock.now()):
                self._give(bytes(backlog.rest[:RECORD]))
            else:
                self._drained(backlog)

    def _on_read(self, future: asyncio.Future[bytes]) -> None:
        self._pending_read = False
        if future.cancelled() or future.exception() is not None:
            self._on_closed()
        else:
            self.last_seen = self.node.clock.now()
            self._inbox = future.result()
            if self.state != GONE:
                self.node.poller.again(self)

    def _on_closed(self) -> None:
        self._closed = True
        if self.state != GONE:
            self.node.poller.again(self)

    # --- the end

    def _shut_writing(self) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.unwrap()  # tells the peer; its answer is among what is thrown away
            except (OSError, ValueError):
                pass
        # An SSLSocket's own method would forget the session, and read ciphertext.
        socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def _release(self) -> None:
        self._stream.set_close_callback(None)
        self._stream.close()
