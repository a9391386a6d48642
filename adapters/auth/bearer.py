"""Where a token stands in a handshake.

``Authorization: Bearer TOKEN`` (RFC 6750) comes first. A browser can't set headers on a
WebSocket, so the query's ``token`` or ``access_token`` is taken too: what stands in an
address may end up in a proxy's log, so let it be a short-lived ticket.
"""

from __future__ import annotations

from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Handshake

SCHEME = "bearer"
IN_QUERY = ("token", "access_token")

LONGEST = 8192
"""Characters. No token in use comes near it, and nothing longer is hashed or parsed."""


def bearer_token(handshake: Handshake) -> str:
    """Return the one token of the handshake.

    Raises ``Unauthorized`` if there is none, if there are several that differ (which
    one counts would be a guess), or if it is too long; the text has nothing of it.
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
    # Another scheme is not ours: a proxy in front may have asked for a password.
    found = (value.strip().partition(" ") for value in handshake.headers.all("authorization"))
    return [
        token.strip() for scheme, _, token in found if scheme.lower() == SCHEME and token.strip()
    ]


def _from_query(handshake: Handshake) -> list[str]:
    return [token for name in IN_QUERY for token in handshake.query.all(name) if token]
