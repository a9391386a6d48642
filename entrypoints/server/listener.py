"""The listening sockets of a server, and what it serves there over HTTP.

``settings.hosts`` says which addresses a host means. Each address family has a socket of its own:
``::`` is every IPv6 address and no IPv4 address, on every system alike.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl as tls
from collections.abc import Callable, Sequence
from contextlib import suppress
from traceback import walk_tb
from types import EllipsisType
from typing import Any

from tornado.netutil import bind_sockets
from tornado.routing import Matcher
from tornado.web import Application

from eyewall.adapters.web.http.origin import Hosts
from eyewall.adapters.web.http.refusals import RefusalLog
from eyewall.adapters.web.http.request_target import RedactingHandler
from eyewall.adapters.web.http.server import LimitedServer, http_server
from eyewall.application.concurrency.stalls import Stalls
from eyewall.domain.handshake import RefusalReason
from eyewall.settings.hosts import EVERYWHERE, WILDCARDS, hosts_of
from eyewall.settings.settings import Settings

BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted: after a restart all clients
reconnect at once."""

_NO_SUCH_FAMILY = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

ListenArguments = tuple[
    str | EllipsisType, int | EllipsisType | None, tls.SSLContext | EllipsisType | None
]
"""Host, port and TLS as a program gives them; ``...`` stands for one that it left out."""


def listen_address(
    settings: Settings,
    host: str | EllipsisType,
    port: int | EllipsisType,
    ssl: tls.SSLContext | EllipsisType | None,
) -> tuple[str, int, tls.SSLContext | None]:
    """Return host, port and TLS to listen with: the arguments, and for ``...`` the settings.

    Raises ``SettingsError`` if the TLS files of the settings can't be used.
    """
    return (
        settings.server.host if host is ... else host,
        settings.server.port if port is ... else port,
        settings.tls.context() if ssl is ... else ssl,
    )


def check_port(port: object) -> None:
    """Raise ``ValueError`` unless ``port`` is a whole number from 0 to 65535."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"port must be a whole number from 0 to 65535, not {port!r:.80}")


class CannotListen(OSError):
    """The address is not available. ``explain`` tells the operator why."""

    def __init__(self, error: OSError, host: str, port: int) -> None:
        super().__init__(error.errno, error.strerror, f"{host}:{port}")
        self._host = host
        self._port = port
        self._is_unknown = isinstance(error, socket.gaierror) or (
            error.errno == errno.EADDRNOTAVAIL
        )

    def explain(self, option: str) -> str:
        """Return one sentence; ``option`` is how the operator names another port."""
        if self._is_unknown:
            return f"{self._host} is not an address of this machine"
        port = f"port {self._port} on {self._host}"
        if self.errno == errno.EADDRINUSE:
            return f"{port} is in use; take another with {option}"
        if self.errno in (errno.EACCES, errno.EPERM):
            return f"{port} is not allowed to this user; take one of 1024 or above with {option}"
        return f"{port} can't be listened on: {self.strerror}"


class Listener:
    """One listening port. The constructor raises ``CannotListen`` if it is not available."""

    def __init__(self, host: str, port: int, ssl: tls.SSLContext | None) -> None:
        check_port(port)
        if not isinstance(host, str):
            raise ValueError(f"host must be a string, not {host!r:.80}")
        if not isinstance(ssl, tls.SSLContext | None):
            raise ValueError(f"ssl must be an ssl.SSLContext or None, not {ssl!r:.80}")
        try:
            self._sockets = _bind(host, port)
        except OSError as error:
            raise CannotListen(error, host, port) from error
        self._ssl = ssl
        self._http: LimitedServer | None = None
        self.host = host
        self.port = int(self._sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The address for clients."""
        host = self.host.partition(",")[0].strip()
        host = "localhost" if host in EVERYWHERE else host
        host = f"[{host}]" if ":" in host else host
        return f"{'ws' if self._ssl is None else 'wss'}://{host}:{self.port}/ws"

    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens on, each with its port."""
        return [
            f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
            for name in (sock.getsockname() for sock in self._sockets)
        ]

    @property
    def families(self) -> list[str]:
        """The address families of its sockets: ``IPv4``, ``IPv6`` or both."""
        known = {sock.family for sock in self._sockets}
        return [
            name
            for name, family in (("IPv4", socket.AF_INET), ("IPv6", socket.AF_INET6))
            if family in known
        ]

    def serve(
        self,
        rules: Sequence[Any],
        handshake_timeout: float,
        *,
        hosts: Hosts | None = None,
        refusals: RefusalLog | None = None,
        paused: Callable[[OSError], None] | None = None,
        stalls: Stalls | None = None,
    ) -> None:
        """Accept connections and serve Tornado's ``rules``.

        A handshake has ``handshake_timeout`` seconds. With ``hosts`` requests for any other host
        are refused. ``refusals`` is told of each refused handshake, ``paused`` of each pause in
        accepting. ``stalls`` watches the loop.
        """
        foreign: list[Any] = []
        if hosts is not None:
            foreign.append((_UnservedHost(hosts), _UnservedHostHandler, {"refusals": refusals}))
        application = Application([*foreign, *rules], log_function=_no_access_log)
        self._http = http_server(
            application,
            ssl=self._ssl,
            handshake_timeout=handshake_timeout,
            refusals=refusals,
            paused=paused,
            stalls=stalls,
        )
        self._http.add_sockets(self._sockets)

    async def close(self) -> None:
        """Stop listening and end the requests in progress; one that is half read is answered."""
        if self._http is not None:
            self._http.stop()
        self.release()
        if self._http is not None:
            await self._http.refuse_pending()
            await self._http.close_all_connections()
            self._http = None

    def release(self) -> None:
        """Close the sockets. May be called again."""
        for sock in self._sockets:
            sock.close()


def _bind(host: str, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for one in hosts_of(host):
            for address in WILDCARDS if one in EVERYWHERE else (one,):
                # Port 0 means a free one: the same for all addresses.
                number = port or (sockets[0].getsockname()[1] if sockets else 0)
                try:
                    sockets += _bound(number, address)
                except UnicodeError:  # "a..b" is no valid name; no lookup
                    raise socket.gaierror(socket.EAI_NONAME, f"no name: {one!r:.80}") from None
                except OSError as error:
                    # "Everywhere" means the families that the machine has.
                    if one not in EVERYWHERE or error.errno not in _NO_SUCH_FAMILY:
                        raise
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for sock in sockets:
            with suppress(OSError):
                sock.close()
        raise
    return sockets


def _bound(port: int, address: str) -> list[socket.socket]:
    """Return the sockets of ``bind_sockets``. If it fails, close those that it had opened.

    Tornado leaves them to the garbage collector, and the error's traceback refers to them: while
    the caller keeps the error, the process itself would hold a part of the port.
    """
    try:
        return bind_sockets(port, address, backlog=BACKLOG)
    except OSError as error:
        for frame, _ in walk_tb(error.__traceback__):
            if frame.f_code is bind_sockets.__code__:
                known = frame.f_locals
                for left in (*known.get("sockets", ()), known.get("sock")):
                    if left is not None:
                        left.close()
        raise


class _UnservedHost(Matcher):
    """Matches requests for a host that the server does not serve."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def match(self, request: Any) -> dict[str, Any] | None:
        return None if self._hosts.allow(request.headers.get_list("Host")) else {}


class _UnservedHostHandler(RedactingHandler):
    """Answers 403 to every request for a host that the server does not serve."""

    def initialize(self, refusals: RefusalLog | None) -> None:
        self._refusals = refusals

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("this host is not served here\n")
        if self._refusals is not None:
            request = self.request
            self._refusals.report(
                RefusalReason.HOST, 403, headers=request.headers, peer=request.remote_ip
            )


def _no_access_log(_: Any) -> None:
    """Log no request: a query may hold a token."""
