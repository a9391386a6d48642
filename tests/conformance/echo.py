"""A hub that sends back whatever comes, for programs that test protocols."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from eyewall import CompressionConfig, QueueConfig, Server
from eyewall.adapters.web.protocol.deflate import DeflateFormat
from tests.certificate import tls_contexts

MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes: the suite's largest message has 16 MiB."""

MANY = 10_000
"""Messages that the suite may write before it reads their echoes."""


@contextlib.contextmanager
def compressing_always() -> Iterator[None]:
    """Compress also the messages that get larger by it.

    Autobahn's cases for compression, as kosoku runs them, break off at an echo that comes
    uncompressed: they hash it as ``str``. They do so with other servers too.
    """
    usual = DeflateFormat.__dict__["_is_smaller"]
    DeflateFormat._is_smaller = staticmethod(lambda _before, _after: True)
    try:
        yield
    finally:
        DeflateFormat._is_smaller = usual


def echo_server() -> Server:
    """Return a server that takes every message raw, compressed or not, and echoes it."""
    server = Server(
        check_origin=lambda _origin, _handshake: True,
        max_message_size=MAX_MESSAGE,
        worker_queue=MANY,
        lane_queue=MANY,
        queue=QueueConfig(size=MANY, max_bytes=4 * MAX_MESSAGE),
        compression=CompressionConfig(threshold=0),
    )

    @server.hub.on_message
    async def echo(conn: Any, raw: str | bytes) -> bool:
        await conn.send_raw(raw)
        return True

    return server


@contextlib.asynccontextmanager
async def echoing(*, tls: bool = False) -> AsyncIterator[Server]:
    server = echo_server()
    with compressing_always():
        await server.start(port=0, ssl=tls_contexts()[0] if tls else None)
        try:
            yield server
        finally:
            await server.shutdown(1)
