"""What the end of a connection, or its refusal, means: come back or stay away.

The close codes are those of protocol.md: a client comes back after 1001, 1006, 1011 to
1013 and 4000 to 4499, and stays away after every other; after 4504 (as after HTTP 401) it
was not let in, and stays away until it is given another token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from eyewall.domain.errors import (
    ConnectionClosed,
    EyewallError,
    Forbidden,
    Unauthorized,
    Unavailable,
)

TOKEN_EXPIRED: Final = 4401
AUTH_FAILED: Final = 4504
GOES_AWAY: Final = 1012

LONGEST_ASKED: Final = 3600.0
"""Seconds that a server can ask a client to stay away. A drain spreads 200 clients over a
second, so a million of them over more than an hour; whoever says more is mistaken."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended, and what is to be done.

    ``wait`` are the seconds that the server asked for, if it did; ``exact`` says that
    they are this client's own, with the spread already in them. ``stale`` says that the
    token is of no use (any more).
    """

    error: EyewallError
    comes_back: bool = True
    wait: float | None = None
    exact: bool = False
    stale: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether it was not let in: another token may help, and nothing else does."""
        return not self.comes_back and is_refusal(self.error)


def is_refusal(error: EyewallError | None) -> bool:
    """Return whether it says that a client was not let in, as opposed to: no server there."""
    return isinstance(error, (Unauthorized, Forbidden))


def comes_back(code: int) -> bool:
    """Return whether a client returns by itself after a close with this code."""
    return code in (1001, 1006) or 1011 <= code <= 1013 or 4000 <= code <= 4499


def of_close(code: int, reason: str, reconnect_in: float | None = None) -> Ending:
    """Return what a close means; ``reconnect_in`` is what ``system:draining`` had said."""
    text = f"closed with {code} {reason}".rstrip()
    if code in (AUTH_FAILED, TOKEN_EXPIRED):
        return Ending(Unauthorized(f"not let in: {text}"), comes_back(code), stale=True)
    asked = reconnect_in if code == GOES_AWAY else None
    return Ending(ConnectionClosed(text), comes_back(code), wait=asked, exact=asked is not None)


def of_refusal(status: int, headers: Mapping[str, str]) -> Ending:
    """Return what the HTTP answer to a handshake means, if it is not 101."""
    if status == 401:
        error: EyewallError = Unauthorized("the server answers 401: authentication failed")
        return Ending(error, comes_back=False, stale=True)
    if status == 403:
        return Ending(Forbidden("the server answers 403"), comes_back=False)
    moved = ", a redirect: give the address that it leads to" if 300 <= status < 400 else ""
    return Ending(
        Unavailable(f"the server answers {status}{moved}"),
        wait=asked_wait(headers.get("Retry-After")),
    )


def asked_wait(value: object) -> float | None:
    """Return seconds that the other side asked for; None for what is no such number.

    A ``Retry-After`` may be a date, which nobody sends with a 503 of this kind: it is
    passed over.
    """
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return None
    return min(float(value), LONGEST_ASKED)
