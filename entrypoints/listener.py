"""Where a server listens: the port, and what is served there over HTTP."""

from __future__ import annotations

import socket
import ssl as tls
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from eyewall.adapters.web.http_server import http_server
from eyewall.settings import Settings

BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted: all clients come back at
once after a restart."""


def place(
    settings: Settings,
    host: str | EllipsisType,
    port: int | EllipsisType,
    ssl: tls.SSLContext | EllipsisType | None,
) -> tuple[str, int, tls.SSLContext | None]:
    """Return where to listen: as the settings say, but for what is given.

    Raises ``SettingsError`` if the files for TLS are of no use.
    """
    return (
        settings.server.host if host is ... else host,
        settings.server.port if port is ... else port,
        settings.tls.context() if ssl is ... else ssl,
    )


class Listener:
    """One listening port. Raises ``OSError`` where it is made, if it can't be had."""

    def __init__(self, host: str, port: int, ssl: tls.SSLContext | None) -> None:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ValueError(f"port must be a whole number from 0 to 65535, not {port!r:.80}")
        self._sockets: list[socket.socket] = bind_sockets(port, host, backlog=BACKLOG)
        self._ssl = ssl
        self._http: HTTPServer | None = None
        self.host = host
        self.port = int(self._sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = self.host or "localhost"  # "" is every address of the machine
        host = f"[{host}]" if ":" in host else host
        return f"{'ws' if self._ssl is None else 'wss'}://{host}:{self.port}/ws"

    def serve(self, rules: Sequence[Any], handshake_timeout: float) -> None:
        """Let requests in; ``rules`` are Tornado's."""
        application = Application(list(rules), log_function=_no_access_log)
        self._http = http_server(application, ssl=self._ssl, handshake_timeout=handshake_timeout)
        self._http.add_sockets(self._sockets)

    async def close(self) -> None:
        """Listen no longer, and end the requests that are under way."""
        if self._http is not None:
            self._http.stop()
        for sock in self._sockets:  # those that were never let in, too
            sock.close()
        if self._http is not None:
            await self._http.close_all_connections()
            self._http = None


def _no_access_log(_: Any) -> None:
    """Requests are not logged: a query may hold a token."""
