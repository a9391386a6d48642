"""How many descriptors the process may have: each connection takes one.

Where the process is ours (``server.run()``, the command line) the soft limit is raised to the
hard one, which needs no right. In an application of somebody else it is only looked at.
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
"""Windows has no such limit."""

OWN: Final = 64
"""Descriptors that a process has for itself: listening sockets, epolls, files, a database."""

BETWEEN: Final = 60.0
"""Seconds between two lines about a shortage that goes on."""


def limit() -> int | None:
    """Return how many descriptors the process may have; None if there is no limit."""
    if _resource is None:
        return None
    soft, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    return None if soft == _resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Let the process have as many descriptors as it may ask for."""
    if _resource is None:
        return
    soft, hard = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            _resource.setrlimit(_resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # some systems name a hard limit that they don't give; it stays as it is


def fill_standard_streams() -> None:
    """Have something stand where standard input, output or error were closed.

    The next file or socket would get such a number, and with it whatever a library in C, or a
    child process, writes there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free


def drop_unwritten() -> None:
    """Have nothing left in the buffer of standard error that can't be written, on a full disk
    or to a reader who has gone.

    Python would try once more when it exits, fail, and turn the status to 120.
    """
    try:
        sys.stderr.flush()
    except (AttributeError, ValueError):  # none, or a closed one
        return
    except OSError:
        with suppress(OSError, ValueError):
            _flush_into_nothing(sys.stderr)


def _flush_into_nothing(stream: TextIO) -> None:
    number = stream.fileno()
    kept, nothing = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, number)
        stream.flush()
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(nothing)


def warn(logger: Logger, max_connections: int | None) -> None:
    """Say it if there are fewer descriptors than connections that may come."""
    have = limit()
    if have is not None and max_connections is not None and have < max_connections + OWN:
        logger.warning(
            "too_few_descriptors",
            limit=have,
            wanted=max_connections + OWN,
            max_connections=max_connections,
        )


class Shortage:
    """Counts the pauses in accepting, and logs the first, and then one now and then."""

    def __init__(self, stats: Stats, logger: Logger, clock: Clock) -> None:
        self._stats = stats
        self._logger = logger
        self._clock = clock
        self._logged: float | None = None
        self._pauses = 0

    def paused(self, error: OSError) -> None:
        """Nothing is accepted for a second, because of ``error``."""
        self._stats.happened(Incident.ACCEPT_PAUSES)
        self._pauses += 1
        now = self._clock.now()
        if self._logged is not None and now - self._logged < BETWEEN:
            return
        self._logged = now
        fields: dict[str, Any] = {"pauses": self._pauses, "limit": limit()}
        reason = errno.errorcode.get(error.errno or 0, str(error.errno))
        self._logger.error("accepting_paused", reason=reason, **fields)
        self._pauses = 0
