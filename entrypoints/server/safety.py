"""Whether the adapters of a server go together.

A bus that other nodes share makes one cluster of them. State or history that they don't
share splits it silently: members of one node never see what is published on another in a
room with history, and capacity, bans and roles are those of a node.

Adapters in memory say of themselves that they end with the process (``across_processes`` is
False). All others count as shared with other nodes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Final

from eyewall.application.config import Ports
from eyewall.application.ports.plugins import Logger
from eyewall.domain.errors import UnsafeConfiguration
from eyewall.domain.identity import names
from eyewall.settings.schema import SPLIT_STATE, UNSAFE

_REMEDY: Final = (
    "give all nodes the same state and history, or, if a cluster that is split so is what you "
    f'want, Server(allow_unsafe={{"{SPLIT_STATE}"}})'
)


def allowed(given: Collection[str]) -> frozenset[str]:
    """Read ``allow_unsafe``; raises ``ValueError``."""
    found = names(given, "allow_unsafe")
    if unknown := sorted(found - UNSAFE):
        raise ValueError(f"allow_unsafe knows {', '.join(UNSAFE)}, not {', '.join(unknown)}")
    return found


class Running:
    """The servers of this process that run, by the bus and channel that they share."""

    def __init__(self) -> None:
        self._on: dict[tuple[int, int, str], list[Ports]] = {}

    def enter(self, ports: Ports, channel: str, allow: Collection[str], logger: Logger) -> None:
        """A server is about to start. Raises ``UnsafeConfiguration`` if it would split its
        cluster, unless that is allowed; then it is logged."""
        others = self._on.get(self._key(ports, channel), [])
        fault = _beyond_the_process(ports) or _within_it(ports, others)
        if fault and SPLIT_STATE not in allow:
            raise UnsafeConfiguration(f"{fault}: {_REMEDY}")
        if fault:
            logger.warning("unsafe_configuration", allowed=SPLIT_STATE, problem=fault)
        elif _splits_history(ports, others):
            logger.warning("history_not_shared", problem="a server on the same bus has another")
        self._on.setdefault(self._key(ports, channel), []).append(ports)

    def leave(self, ports: Ports, channel: str) -> None:
        """It has ended. May be called for one that has not entered."""
        key = self._key(ports, channel)
        left = [other for other in self._on.get(key, ()) if other is not ports]
        if left:
            self._on[key] = left
        else:
            self._on.pop(key, None)

    @staticmethod
    def _key(ports: Ports, channel: str) -> tuple[int, int, str]:
        return os.getpid(), id(ports.pubsub), channel


def _reaches_out(adapter: Any) -> bool:
    return bool(getattr(adapter, "across_processes", True))


def _beyond_the_process(ports: Ports) -> str | None:
    if not _reaches_out(ports.pubsub):
        return None
    alone = [what for what in ("state", "history") if not _reaches_out(getattr(ports, what))]
    if not alone:
        return None
    bus, verb = type(ports.pubsub).__name__, "is" if len(alone) == 1 else "are"
    return f"{bus} carries to other nodes, and {' and '.join(alone)} {verb} in this one's memory"


def _within_it(ports: Ports, others: list[Ports]) -> str | None:
    if _reaches_out(ports.state) or all(other.state is ports.state for other in others):
        return None
    return "another server of this process is on the same bus, with a state of its own in memory"


def _splits_history(ports: Ports, others: list[Ports]) -> bool:
    """Whether rooms with history would be split, and nothing else: servers of one process
    that keep none may do without."""
    apart = any(other.history is not ports.history for other in others)
    return apart and not _reaches_out(ports.history)


RUNNING: Final = Running()
"""Of this process; a fork has left the servers behind that it was forked from."""
