"""Who may come into the chat, and under which name."""

from __future__ import annotations

from eyewall import ConnMeta, Handshake, Unauthorized, UserId
from eyewall.domain.identity import is_printable

LONGEST_NAME = 32
_UNSEEN = frozenset("\u200b\u2060\ufeff")
"""They show nothing and join nothing: people in a chat are told apart by what is seen."""


def tidy(name: str) -> str | None:
    """Return ``name`` with its spaces in order, or None if it can't name anything."""
    name = " ".join(name.split())
    fits = 0 < len(name) <= LONGEST_NAME and is_printable(name) and not _UNSEEN & set(name)
    return name if fits else None


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
