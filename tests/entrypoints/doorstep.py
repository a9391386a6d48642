"""A server that is knocked at in every way: by itself, or in an application of somebody's."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from eyewall import Server
from eyewall.testing.logs import RecordingLogger
from tests.application.fakes import RecordingMetrics
from tests.entrypoints.wire import UNIT, UPGRADE, free_port


class Counting(RecordingMetrics):
    """Metrics of a user's own that hear of refusals too."""

    def __init__(self):
        super().__init__()
        self.reasons = []

    def refused(self, reason):
        self.reasons.append(reason)


class Place:
    """A server that listens by itself, or in an application of somebody's."""

    def __init__(self, server, port, log, metrics):
        self.server = server
        self.port = port
        self.log = log
        self.metrics = metrics

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/ws"

    def lines(self):
        return [fields for _, event, fields in self.log.entries if event == "handshake_refused"]

    async def status(self, path="/ws", version="1.1", method="GET", **changes):
        fields = {"Host": "here", **UPGRADE}
        fields |= {name.replace("_", "-"): value for name, value in changes.items()}
        lines = [f"{n}: {v}" for n, v in fields.items() if v is not None]
        head = "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode("latin-1"))
            async with asyncio.timeout(5 * UNIT):
                answer = await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()
        return int(answer.split()[1]), answer.decode("latin-1")


@contextlib.asynccontextmanager
async def serving(*, embedded=False, path="/ws", **options):
    log, metrics = RecordingLogger(), Counting()
    server = Server(logger=log, metrics=metrics, **options)
    http = None
    if embedded:
        sock, port = bind_unused_port()
        http = HTTPServer(Application(server.routes(path)))
        http.add_sockets([sock])
        await server.start()
    else:
        port = free_port()
        await server.start(port=port)
    try:
        yield Place(server, port, log, metrics)
    finally:
        await server.shutdown(timeout=1)
        if http is not None:
            http.stop()
            await http.close_all_connections()


EMBEDDED = pytest.mark.parametrize("embedded", [False, True], ids=["own", "embedded"])
