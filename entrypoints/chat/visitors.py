"""The authenticator of the chat: users choose their name."""

from __future__ import annotations

from eyewall import ConnMeta, Handshake, Unauthorized, UserId
from eyewall.domain.identity import is_printable

LONGEST_NAME = 32
_UNSEEN = frozenset("\u200b\u2060\ufeff")
"""Invisible characters that join nothing: names must differ visibly."""


def tidy(name: str) -> str | None:
    """Return ``name`` with normalized spaces; None if it is empty, too long or not printable."""
    name = " ".join(name.split())
    fits = 0 < len(name) <= LONGEST_NAME and is_printable(name) and not _UNSEEN & set(name)
    return name if fits else None


def by_name(handshake: Handshake) -> ConnMeta:
    """Authenticate a handshake by the name in its query. It proves nothing: this is a demo.

    A client without a name is connected without a user: it can try the protocol, but not chat.
    Raises ``Unauthorized`` for a name that is not 1 to 32 printable characters.
    """
    if "name" not in handshake.query:
        return ConnMeta()
    name = tidy(handshake.query["name"])
    if name is None:
        raise Unauthorized(f"a name has 1 to {LONGEST_NAME} printable characters")
    return ConnMeta(user_id=UserId(name))
