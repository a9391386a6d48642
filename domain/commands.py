"""Which of the server's own requests clients may make (protocol.md, "Reserved topics")."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

COMMANDS: Final = ("join", "leave", "publish", "members", "presence", "typing", "history")
"""Those that an application turns on. ``resume`` and ``refresh`` are always there."""


def commands_of(given: bool | Collection[str]) -> frozenset[str]:
    """Read ``client_commands``: all, none, or those that are named.

    Raises ``ValueError`` for a name that is none of them, and for what is no such choice.
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
    """What a client is told that asks for a command that is off."""
    return (
        f"system:{name} is switched off on this server: "
        f'client_commands turns it on (True, or a set with "{name}")'
    )
