"""Checks that the adapters of a server fit together, before it starts.

Nodes that share a bus form one cluster. If they do not share state and history, the cluster is
split silently: members on one node miss the messages that another node publishes to a room with
history, and capacity, bans and roles hold for one node only.

Memory adapters declare that they end with the process (``across_processes`` is False). All
others count as shared with other nodes.
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


def allowed_unsafe(given: Collection[str]) -> frozenset[str]:
    """Return ``allow_unsafe`` as a set; raises ``ValueError`` for an unknown name."""
    found = names(given, "allow_unsafe")
    if unknown := sorted(found - UNSAFE):
        raise ValueError(f"allow_unsafe knows {', '.join(UNSAFE)}, not {', '.join(unknown)}")
    return found


class RunningServers:
    """The running servers of this process, by the bus and channel that they share."""

    def __init__(self) -> None:
        self._by_bus: dict[tuple[int, int, str], list[Ports]] = {}

    def enter(self, ports: Ports, channel: str, allow: Collection[str], logger: Logger) -> None:
        """Add a server that starts. Raises ``UnsafeConfiguration`` if it would split its
        cluster; if ``allow`` permits that, logs a warning instead."""
        others = self._by_bus.get(self._key(ports, channel), [])
        fault = _split_between_nodes(ports) or _split_in_process(ports, others)
        if fault and SPLIT_STATE not in allow:
            raise UnsafeConfiguration(f"{fault}: {_REMEDY}")
        if fault:
            logger.warning("unsafe_configuration", allowed=SPLIT_STATE, problem=fault)
        elif _splits_history(ports, others):
            logger.warning("history_not_shared", problem="a server on the same bus has another")
        self._by_bus.setdefault(self._key(ports, channel), []).append(ports)

    def leave(self, ports: Ports, channel: str) -> None:
        """Remove a server that has ended. Ignores one that was not added."""
        key = self._key(ports, channel)
        remaining = [other for other in self._by_bus.get(key, ()) if other is not ports]
        if remaining:
            self._by_bus[key] = remaining
        else:
            self._by_bus.pop(key, None)

    @staticmethod
    def _key(ports: Ports, channel: str) -> tuple[int, int, str]:
        return os.getpid(), id(ports.pubsub), channel


def _is_shared(adapter: Any) -> bool:
    return bool(getattr(adapter, "across_processes", True))


def _split_between_nodes(ports: Ports) -> str | None:
    if not _is_shared(ports.pubsub):
        return None
    alone = [what for what in ("state", "history") if not _is_shared(getattr(ports, what))]
    if not alone:
        return None
    bus, verb = type(ports.pubsub).__name__, "is" if len(alone) == 1 else "are"
    return f"{bus} reaches other nodes, and {' and '.join(alone)} {verb} in the memory of this one"


def _split_in_process(ports: Ports, others: list[Ports]) -> str | None:
    if _is_shared(ports.state) or all(other.state is ports.state for other in others):
        return None
    return "another server of this process is on the same bus, with a state of its own in memory"


def _splits_history(ports: Ports, others: list[Ports]) -> bool:
    """Whether the servers share the state but not the history: only rooms with history would be
    split, and servers of one process may have none."""
    apart = any(other.history is not ports.history for other in others)
    return apart and not _is_shared(ports.history)


RUNNING: Final = RunningServers()
"""The servers of this process. Keys have the process id: a fork has none of its parent's."""
