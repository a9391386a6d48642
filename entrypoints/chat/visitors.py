"""Who may come into the chat, and under which name."""

from __future__ import annotations

from eyewall import ConnMeta, Handshake, Unauthorized, UserId

LONGEST_NAME = 32


def tidy(name: str) -> str | None:
    """Return ``name`` with its spaces in order, or None if it can't name anything."""
    name = " ".join(name.split())
    return name if 0 < len(name) <= LONGEST_NAME and name.isprintable() else None


def by_name(handshake: Handshake) -> ConnMeta:
    """Let people in under the name that they give. It proves nothing: this is a demo.

    A program that gives none may come in too and try the protocol, but not chat.
    Raises ``Unauthorized`` for a name that is not 1 to 32 printable characters.
    """
    if "name" not in handshake.query:
        return ConnMeta()
    name = tidy(handshake.query["name"])
    if name is None:
        raise Unauthorized(f"a name has 1 to {LONGEST_NAME} printable characters")
    return ConnMeta(user_id=UserId(name))
