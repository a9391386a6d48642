"""The limit on file descriptors of the process: each connection takes one.

``server.run()`` and the command line own the process and raise the soft limit to the hard limit,
which needs no privilege. An embedded server only reads the limit.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

from eyewall.application.connections.stats import Stats
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.plugins import Logger
from eyewall.domain.report import Incident

_resource = importlib.import_module("resource") if os.name == "posix" else None
"""None on Windows, which has no such limit."""

RESERVED: Final = 64
"""Descriptors that are no connections: listening sockets, epolls, files, a database."""

LOG_INTERVAL: Final = 60.0
"""Seconds between two log lines about a shortage that lasts."""


def limit() -> int | None:
    """Return the soft limit on descriptors of this process; None if there is none."""
    if _resource is None:
        return None
    soft, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    return None if soft == _resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit on descriptors to the hard limit, where the system allows it."""
    if _resource is None:
        return
    soft, hard = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            _resource.setrlimit(_resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # some systems refuse their own hard limit: the soft one stays


def fill_standard_streams() -> None:
    """Open the null device for each of standard input, output and error that is closed.

    Otherwise the next file or socket gets that number, and receives what a C library or a child
    process writes to the stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def discard_unwritten_output() -> None:
    """Empty the buffer of standard error if it can't be written (full disk, closed pipe).

    Otherwise Python tries again when it exits, fails, and changes the exit status to 120.
    """
    try:
        sys.stderr.flush()
    except (AttributeError, ValueError):  # missing or closed
        return
    except OSError:
        with suppress(OSError, ValueError):
            _flush_to_null(sys.stderr)


def _flush_to_null(stream: TextIO) -> None:
    number = stream.fileno()
    original, null = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, number)
        stream.flush()
    finally:
        os.dup2(original, number)
        os.close(original)
        os.close(null)


def warn_if_too_few(logger: Logger, max_connections: int | None) -> None:
    """Log a warning if the limit on descriptors is below ``max_connections`` and ``RESERVED``."""
    have = limit()
    if have is not None and max_connections is not None and have < max_connections + RESERVED:
        logger.warning(
            "too_few_descriptors",
            limit=have,
            wanted=max_connections + RESERVED,
            max_connections=max_connections,
        )


class AcceptPauses:
    """Counts the pauses in accepting, and logs the first and then one per ``LOG_INTERVAL``."""

    def __init__(self, stats: Stats, logger: Logger, clock: Clock) -> None:
        self._stats = stats
        self._logger = logger
        self._clock = clock
        self._logged: float | None = None
        self._pauses = 0

    def paused(self, error: OSError) -> None:
        """Count a pause: the server accepts nothing for a second because of ``error``."""
        self._stats.happened(Incident.ACCEPT_PAUSES)
        self._pauses += 1
        now = self._clock.now()
        if self._logged is not None and now - self._logged < LOG_INTERVAL:
            return
        self._logged = now
        fields: dict[str, Any] = {"pauses": self._pauses, "limit": limit()}
        reason = errno.errorcode.get(error.errno or 0, str(error.errno))
        self._logger.error("accepting_paused", reason=reason, **fields)
        self._pauses = 0
