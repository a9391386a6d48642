"""The ops address: ``/metrics``, ``/healthz`` and ``/readyz`` apart from the clients' port.

On the clients' port every client can read these pages. With an ops address the server serves
them there only. Rules of this file:

1. The address answers before the adapters open and until everything else has ended: a monitor
   reads "starting" and "draining", and its connection is never refused.
2. Its requests have the limits of the clients' port. They are no handshakes: a malformed one
   does not count as a refused handshake.
3. It serves every ``Host`` and has no TLS: monitors use changing addresses. The address that it
   listens on decides which machines reach it; by default only this machine does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.ports.plugins import Logger
from eyewall.server.listener import CannotListen, Listener
from eyewall.settings.hosts import LOOPBACK


def check_ops_address(host: object, port: object) -> None:
    """Raise ``ValueError`` for a wrong ops host or port. A port of None means no ops address; a
    host without a port is an error, because it would have no effect."""
    if not isinstance(host, str):
        raise ValueError(f"ops_host must be a string, not {host!r:.80}")
    fits = port is None or (type(port) is int and 0 <= port <= 65535)
    if not fits:
        raise ValueError(
            f"ops_port must be None or a whole number from 0 to 65535, not {port!r:.80}"
        )
    if port is None and host != LOOPBACK:
        raise ValueError("ops_host needs ops_port beside it")


class CannotServeOps(CannotListen):
    """The ops address is not available; the clients' port is."""

    def __init__(self, error: OSError, host: str, port: int, *, is_clients: bool = False) -> None:
        super().__init__(error, host, port)
        self._is_clients = is_clients
        self._where = f"{host}:{port}"

    def __str__(self) -> str:
        return f"the ops address {self._where}: {super().__str__()}"

    def explain(self, option: str) -> str:
        """Return one sentence; ``option`` names the clients' port (``--port``, ``port=``), from
        which the name of the ops port follows."""
        ours = "ops.port" if option.startswith("-") else "ops_port="
        if self._is_clients:
            where = f"{self._where} is the clients' address"
            return f"the ops address is not available: {where}; take another with {ours}"
        return f"the ops address is not available: {super().explain(ours)}"


class OpsAddress:
    """The listening port of the ops address, in each life of its server."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._listener: Listener | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not listen."""
        return None if self._listener is None else self._listener.port

    def listen(self, clients: int | None = None) -> None:
        """Listen; raises ``CannotServeOps``. ``clients`` is the clients' port, for its message."""
        try:
            self._listener = Listener(self._host, self._port, None)
        except CannotListen as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            is_clients = error.errno == errno.EADDRINUSE and self._port == clients
            raise CannotServeOps(cause, self._host, self._port, is_clients=is_clients) from error

    def serve(
        self,
        rules: Sequence[Any],
        timeout: float,
        *,
        logger: Logger,
        paused: Callable[[OSError], None],
        stalls: Stalls,
    ) -> None:
        """Serve Tornado's ``rules``. A request has ``timeout`` seconds until it is read."""
        assert self._listener is not None
        self._listener.serve(rules, timeout, paused=paused, stalls=stalls)
        logger.info("ops_listening", addresses=self._listener.addresses)

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.close()
