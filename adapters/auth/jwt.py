"""Signed tokens (JSON Web Tokens, RFC 7519), checked by PyJWT.

Rules of this file:

1. The algorithms are pinned when the authenticator is built; the token's own header decides
   nothing. Shared-secret and public-key algorithms never mix: the public key would be accepted
   as the shared secret.
2. A token without an expiry (``exp``) is refused.
3. An error about a token quotes nothing of the token: only the names of required claims, and no
   value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from eyewall.adapters.auth.bearer import bearer_token
from eyewall.application.ports.extras import needs
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta, UserId, name

try:
    import jwt
except ImportError as error:
    raise ImportError(needs("JwtAuthenticator", "jwt"), name="jwt") from error

T = TypeVar("T")

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is from another issuer"),
    (jwt.InvalidSignatureError, "the token is signed with another key"),
    (jwt.InvalidAlgorithmError, "the token is signed with an algorithm that is not accepted"),
)
_SHORTEST = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Minimum bytes of a shared secret: the size of the hash (RFC 7518, 3.2). An attacker with one
token can try short keys offline."""
_NOT_VALID = "the token is not valid"


class JwtAuthenticator:
    """Implements ``Authenticator`` with tokens that another service has signed.

    ``key`` is the shared secret (HS256, HS384, HS512) or the public key in PEM (the
    others). A token must have ``audience`` and ``issuer`` if they are given. Without
    ``audience``, a token that names an audience is refused: it is meant for another service.
    ``leeway`` is how many seconds clocks may differ. ``user_claim`` is required, and is a string
    or a whole number. ``roles_claim`` and ``tags_claim`` are lists of strings, or one string
    with spaces between them, or missing.

    The connection ends with the token: ``ConnMeta.expires_at`` is ``exp`` plus the leeway.

    >>> JwtAuthenticator("a secret of thirty-two characters", algorithms=["HS256"])
    JwtAuthenticator(algorithms=['HS256'])

    Raises ``ValueError`` if no algorithm is given, or one is unknown, or they are mixed, and for
    a key that does not fit them or is shorter than RFC 7518, 3.2 requires (32 bytes for HS256).
    Raises ``ImportError`` if an algorithm needs a package that is not installed.
    """

    def __init__(
        self,
        key: str | bytes,
        *,
        algorithms: Iterable[str],
        audience: str | None = None,
        issuer: str | None = None,
        leeway: Seconds = 0.0,
        user_claim: str = "sub",
        roles_claim: str = "roles",
        tags_claim: str = "tags",
    ) -> None:
        self._algorithms = _pinned(algorithms)
        _check_key(key, self._algorithms)
        self._key = key
        self._audience = audience
        self._issuer = issuer
        self._leeway = seconds(leeway, "leeway")
        self._user_claim = user_claim
        self._roles_claim = roles_claim
        self._tags_claim = tags_claim

    def __repr__(self) -> str:
        return f"{type(self).__name__}(algorithms={self._algorithms})"

    def authenticate(self, handshake: Handshake) -> ConnMeta:
        """Return the user of the handshake's token, or raise ``Unauthorized``."""
        claims = self._verified(bearer_token(handshake))
        if self._user_claim not in claims:
            raise _lacks(self._user_claim)
        return ConnMeta(
            user_id=_read(claims, self._user_claim, _user),
            roles=_read(claims, self._roles_claim, _names),
            tags=_read(claims, self._tags_claim, _names),
            expires_at=_read(claims, "exp", self._end),
        )

    def _end(self, claim: Any) -> datetime:
        return datetime.fromtimestamp(int(claim) + self._leeway, UTC)

    def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                # The subject is checked with the other claims: some issuers have numbers
                # for users.
                options={"require": ["exp"], "verify_sub": False},
            )
        except jwt.MissingRequiredClaimError as error:
            raise _lacks(error.claim) from None
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            # ``from None``: PyJWT's own texts quote the header of the token.
            raise Unauthorized(_reason(error)) from None
        return claims


def _lacks(claim: str) -> Unauthorized:
    return Unauthorized(f"the token lacks the claim {claim}")


def _read(claims: Mapping[str, Any], name: str, form: Callable[[Any], T]) -> T:
    try:
        return form(claims.get(name))
    except (ValueError, TypeError, OverflowError, OSError):
        raise Unauthorized(f"the claim {name} of the token has a wrong form") from None


def _reason(error: Exception) -> str:
    return next((text for kind, text in _REASONS if isinstance(error, kind)), _NOT_VALID)


def _pinned(algorithms: Iterable[str]) -> list[str]:
    if isinstance(algorithms, str):
        raise ValueError(f"algorithms must be a list, such as [{algorithms!r}]")
    pinned = list(algorithms)
    if not pinned:
        raise ValueError("algorithms must name at least one, such as ['RS256']")
    for algorithm in pinned:
        if not isinstance(algorithm, str) or algorithm.lower() == "none":
            raise ValueError(f"{algorithm!r} is no algorithm that proves anything")
    if len({_is_hmac(algorithm) for algorithm in pinned}) > 1:
        raise ValueError("HS* and public-key algorithms must not be mixed")
    return pinned


def _is_hmac(algorithm: str) -> bool:
    return algorithm.startswith("HS")


def _check_key(key: str | bytes, algorithms: list[str]) -> None:
    """Raise for an unusable key when the server starts, not at the first handshake."""
    if not isinstance(key, (str, bytes)) or not key:
        raise ValueError("key must be a text or bytes that are not empty")
    for algorithm in algorithms:
        if algorithm in jwt.algorithms.requires_cryptography and not jwt.algorithms.has_crypto:
            raise ImportError(needs(algorithm, "jwt"), name="cryptography")
        least = _SHORTEST.get(algorithm, 0)
        if len(key.encode() if isinstance(key, str) else key) < least:
            raise ValueError(
                f"the key is too short for {algorithm}: it needs at least {least} bytes "
                "(RFC 7518, 3.2), and random ones"
            )
        try:
            jwt.get_algorithm_by_name(algorithm).prepare_key(key)
        except NotImplementedError:
            raise ValueError(f"{algorithm!r} is not an algorithm that PyJWT has") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            # ``from None``: the original error may quote the key in a traceback.
            raise ValueError(f"the key is of no use for {algorithm}") from None


def _user(claim: Any) -> UserId:
    if isinstance(claim, int) and not isinstance(claim, bool):
        claim = str(claim)
    if not isinstance(claim, str):
        raise TypeError
    return UserId(name(claim, "user_id"))


def _names(claim: Any) -> frozenset[str]:
    if claim is None:
        return frozenset()
    if isinstance(claim, str):  # the form of "scope" (RFC 8693, 4.2)
        return frozenset(claim.split())
    if not isinstance(claim, list) or not all(isinstance(name, str) for name in claim):
        raise TypeError
    return frozenset(claim)
