"""The token that a client shows: where it comes from, and when it is time for a new one.

A token whose end is known is shown again until shortly before; one whose end is not
known is asked for anew before each connect.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from eyewall.application.tasks import is_cancelled
from eyewall.client.address import plain_token

EARLY: Final = 30.0
"""Seconds before its end that a token is renewed, or a fifth of its life if that is less:
time for the callback to be slow once and be asked again."""

DOUBLINGS: Final = 4
"""Of the pause between two renewals: four minutes are enough for any mistake."""

Given = str | Mapping[str, Any]
"""A token, or ``{"token": ..., "expires_in": seconds}``, or with ``expires_at``: a
``datetime`` or its text (RFC 3339)."""

TokenSource = str | Callable[[], Given | Awaitable[Given]]


@dataclass(frozen=True, slots=True)
class Token:
    """A token; ``renew_at`` is on the clock that counts seconds, None if nobody knows."""

    text: str = field(repr=False)
    renew_at: float | None = None


def read(given: object, *, now: float, wall: float) -> Token:
    """Return what a callback gave; raises ``ValueError``, without the token in its text.

    ``now`` counts seconds, ``wall`` is the time of day as a timestamp.
    """
    fields = given if isinstance(given, Mapping) else {"token": given}
    text = fields.get("token")
    if not isinstance(text, str):
        raise ValueError("a token must be a text that is not empty, or a mapping with one")
    left = _left(fields.get("expires_in"), fields.get("expires_at"), wall)
    return Token(plain_token(text), None if left is None else now + left - min(EARLY, left / 5))


def _left(expires_in: object, expires_at: object, wall: float) -> float | None:
    """Seconds until the end; None if nobody knows.

    An end that has passed when the token comes says only that this machine's clock is
    wrong: the server says when it is over.
    """
    if expires_in is not None:
        if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float)):
            raise ValueError("expires_in must be seconds")
        return max(0.0, float(expires_in))
    if isinstance(expires_at, str):
        expires_at = datetime.fromisoformat(expires_at)
    if isinstance(expires_at, datetime):
        if expires_at.tzinfo is None:
            raise ValueError("expires_at must have a time zone")
        left = expires_at.timestamp() - wall
        return left if left > 0 else None
    if expires_at is not None:
        raise ValueError("expires_at must be a datetime or its text")
    return None


class Pace:
    """The waits between renewals: ``soonest`` seconds at least, ``again`` after one that
    failed, and twice as many after each that was of no use, since it failed too or its
    token seems to end as soon.

    >>> Pace(soonest=15.0, again=15.0).next(left=900.0)
    900.0
    """

    __slots__ = ("_again", "_in_vain", "_soonest")

    def __init__(self, soonest: float, again: float) -> None:
        self._soonest = soonest
        self._again = again
        self._in_vain = 0

    def next(self, left: float) -> float:
        """Return the seconds to wait after a renewal whose token is due again in ``left``."""
        if left >= self._soonest:
            self._in_vain = 0
            return left
        return self._later(self._soonest)

    def failed(self) -> float:
        """Return the seconds to wait after a renewal that failed."""
        return self._later(self._again)

    def _later(self, first: float) -> float:
        wait = first * 2.0**self._in_vain
        self._in_vain = min(self._in_vain + 1, DOUBLINGS)
        return wait


class Tokens:
    """A token that stays as it is, or a callback that gives one."""

    def __init__(
        self, source: TokenSource | None, *, now: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        if source is not None and not isinstance(source, str) and not callable(source):
            raise ValueError("token must be a text, or a function that returns one")
        self._source = plain_token(source) if isinstance(source, str) else source
        self._now = now
        self._wall = wall
        self._last: Token | None = None
        self.was_kept = False
        """Whether what ``get`` gave last was from an earlier asking."""

    def renew_in(self) -> float | None:
        """Seconds until it is time for a new one; None if nobody knows."""
        if self._last is None or self._last.renew_at is None:
            return None
        return max(0.0, self._last.renew_at - self._now())

    def refused(self) -> None:
        """The server does not want it: the next is a new one."""
        self._last = None

    async def get(self) -> str | None:
        """Return the token to show; None for a client without one.

        Raises what the callback raises, and ``ValueError`` if it gives no token.
        """
        if not callable(self._source):
            return self._source
        self.was_kept = bool(self.renew_in())
        if self._last is not None and self.was_kept:
            return self._last.text
        return await self.renew()

    async def renew(self) -> str:
        """Ask the callback for a new one."""
        assert callable(self._source)
        given = self._source()
        if inspect.isawaitable(given):
            try:
                given = await given
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise RuntimeError("the token callback was cancelled") from None
        self._last = read(given, now=self._now(), wall=self._wall())
        return self._last.text
