"""Fixed tokens, each with its owner: for tests, tools and small installations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from eyewall.adapters.auth.bearer import bearer_token
from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta


class StaticAuthenticator:
    """Implements ``Authenticator`` with a table of tokens.

    Only digests are kept. A token is looked up by its digest, so the time of a lookup does not
    depend on how much of a guess is right, and no dump of this object shows a token.

    >>> StaticAuthenticator({"s3cret": ConnMeta(user_id="ada", roles={"admin"})})
    StaticAuthenticator(1 token)

    Raises ``ValueError`` for an empty token, and for an owner that is no ``ConnMeta``.
    """

    def __init__(self, tokens: Mapping[str, ConnMeta]) -> None:
        for token, owner in tokens.items():
            if not isinstance(token, str) or not token:
                raise ValueError("a token must be a text that is not empty")
            if not isinstance(owner, ConnMeta):
                raise ValueError(f"a token's owner must be a ConnMeta, not {type(owner).__name__}")
        self._owners = {_digest(token): owner for token, owner in tokens.items()}

    def authenticate(self, handshake: Handshake) -> ConnMeta:
        """Return the owner of the handshake's token, or raise ``Unauthorized``."""
        owner = self._owners.get(_digest(bearer_token(handshake)))
        if owner is None:
            raise Unauthorized("the token is not known")
        return owner

    def __repr__(self) -> str:
        count = len(self._owners)
        return f"{type(self).__name__}({count} token{'s' if count != 1 else ''})"


def _digest(token: str) -> bytes:
    # A header or query may contain surrogates, which UTF-8 can't encode.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
