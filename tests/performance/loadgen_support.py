"""A server of one client that behaves as it was told, to try the load generator with."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.performance.serving import tls_context

ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
SIZE = 100
HEADER = 6
"""Bytes before the payload in a frame of ``SIZE`` from a client."""

Behaviour = Callable[[socket.socket, Iterable[str]], None]
"""What a server does with its only client, and with the orders on its standard input."""


def frame(payload: bytes, first: int = 0x81) -> bytes:
    return struct.pack("!BB", first, len(payload)) + payload


class Server:
    """Shakes hands with one client, and then behaves as it was told."""

    def __init__(self, behave: Behaviour, headers: bytes, certificate: Path | None) -> None:
        self._behave = behave
        self._answer = ANSWER + headers + b"\r\n"
        self._certificate = certificate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._orders, self.trigger = os.pipe()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        if self._certificate is not None:
            context = tls_context(str(self._certificate))
            assert context is not None
            client = context.wrap_socket(client, server_side=True)
        with client, os.fdopen(self._orders) as orders:
            client.settimeout(5)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += client.recv(4096)
            client.sendall(self._answer)
            try:
                self._behave(client, orders)
            except OSError:
                pass  # the load generator has seen enough

    def close(self) -> None:
        os.close(self.trigger)
        self._thread.join(5)
        self._listener.close()
        assert not self._thread.is_alive()


def unmasked(received: bytes) -> bytes:
    """Return the payload of a short frame from the client; nothing for nothing."""
    mask, masked = received[2:HEADER], received[HEADER:]
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))


def published(number: int, fill: int) -> bytes:
    return frame(b'{"seq":%d,"pad":"%s"}' % (number, b"x" * fill))


def publisher(misbehave: Callable[[list[bytes]], Iterable[bytes]]) -> Behaviour:
    def behave(client: socket.socket, orders: Iterable[str]) -> None:
        for order in orders:
            first, count, fill = map(int, order.split())
            frames = [published(first + i, fill) for i in range(count)]
            # The rehearsal, one message a round, is left alone.
            for piece in misbehave(frames) if count > 1 else frames:
                client.sendall(piece)

    return behave
