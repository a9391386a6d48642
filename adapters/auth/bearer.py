"""Reads the bearer token of a handshake.

``Authorization: Bearer TOKEN`` (RFC 6750) takes precedence. A browser can't set headers on a
WebSocket, so ``token`` or ``access_token`` in the query is accepted too. A query may end up in
a proxy's log, so such a token should be a short-lived ticket.
"""

from __future__ import annotations

from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Handshake

SCHEME = "bearer"
IN_QUERY = ("token", "access_token")

LONGEST = 8192
"""Characters of a token: far more than tokens have. A longer one is not hashed or parsed."""


def bearer_token(handshake: Handshake) -> str:
    """Return the one token of the handshake.

    Raises ``Unauthorized`` if there is none, if there are several different ones (the right
    one is ambiguous), or if it is too long. The text of the error quotes no token.
    """
    tokens = set(_from_headers(handshake)) or set(_from_query(handshake))
    if not tokens:
        raise Unauthorized("a token is needed")
    if len(tokens) > 1:
        raise Unauthorized("there is more than one token")
    token = tokens.pop()
    if len(token) > LONGEST:
        raise Unauthorized("the token is too long")
    return token


def _from_headers(handshake: Handshake) -> list[str]:
    # Other schemes are skipped: they may be meant for a proxy in front.
    found = (value.strip().partition(" ") for value in handshake.headers.all("authorization"))
    return [
        token.strip() for scheme, _, token in found if scheme.lower() == SCHEME and token.strip()
    ]


def _from_query(handshake: Handshake) -> list[str]:
    return [token for name in IN_QUERY for token in handshake.query.all(name) if token]
