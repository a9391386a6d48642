"""Which of the server's own requests clients may make (protocol.md, "Reserved topics")."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

COMMANDS: Final = ("join", "leave", "publish", "members", "presence", "typing", "history")
"""The requests that ``client_commands`` turns on. ``resume`` and ``refresh`` are always on."""


def commands_of(given: bool | Collection[str]) -> frozenset[str]:
    """Return the requests that ``client_commands`` turns on: all, none, or the named ones.

    Raises ``ValueError`` for an unknown name, and for a value of another type.
    """
    if isinstance(given, bool):
        return frozenset(COMMANDS) if given else frozenset()
    names: Any = given
    if isinstance(names, str | bytes) or not isinstance(names, Collection):
        raise ValueError(
            f"client_commands must be True, False or a set of names, not {given!r:.80}"
        )
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        listed = ", ".join(f"{name!r:.40}" for name in unknown[:8])
        raise ValueError(f"client_commands knows {', '.join(COMMANDS)}, not {listed}")
    return frozenset(names)


def switched_off(name: str) -> str:
    """Return the error text for a client that sends a request that is off."""
    return (
        f"system:{name} is switched off on this server: "
        f'client_commands turns it on (True, or a set with "{name}")'
    )
