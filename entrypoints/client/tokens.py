"""The token that a client shows: where it comes from, and when it is time for a new one.

A token whose end is known is shown again until shortly before; one whose end is not
known is asked for anew before each connect.

Rules of this file:

1. After a refusal nothing is shown that was refused: a callback is asked once more, and what
   it gives is tried if it is another token; else it takes a new source (``set``).
2. A source that is set while another one is asked has the last word.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from eyewall.application.concurrency.tasks import is_cancelled
from eyewall.client.address import valid_token
from eyewall.domain.errors import EyewallError, Refused

RENEW_BEFORE: Final = 30.0
"""Seconds before its end that a token is renewed, or a fifth of its life if that is less:
time for the callback to be slow once and be asked again."""

MAX_DOUBLINGS: Final = 4
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


def parse_token(given: object, *, now: float, wall: float) -> Token:
    """Return what a callback gave; raises ``ValueError``, without the token in its text.

    ``now`` counts seconds, ``wall`` is the time of day as a timestamp.
    """
    fields = given if isinstance(given, Mapping) else {"token": given}
    text = fields.get("token")
    if not isinstance(text, str):
        raise ValueError("a token must be a text that is not empty, or a mapping with one")
    left = _left(fields.get("expires_in"), fields.get("expires_at"), wall)
    return Token(
        valid_token(text), None if left is None else now + left - min(RENEW_BEFORE, left / 5)
    )


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


class RenewalBackoff:
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
        self._in_vain = min(self._in_vain + 1, MAX_DOUBLINGS)
        return wait


def valid_source(source: TokenSource | None) -> TokenSource | None:
    """Return where tokens come from; raises ``ValueError``, without the token in its text."""
    if isinstance(source, str):
        return valid_token(source)
    if source is not None and not callable(source):
        raise ValueError("token must be a text, or a function that returns one")
    return source


class Tokens:
    """A token that stays as it is, or a callback that gives one."""

    def __init__(
        self, source: TokenSource | None, *, now: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._source = valid_source(source)
        self.generation = 0
        """How many times the source was replaced."""
        self._now = now
        self._wall = wall
        self._last: Token | None = None
        self._shown: str | None = None
        self._refused: tuple[str | None, Refused] | None = None
        """The token after whose refusal the callback is asked once more, and what was said."""
        self._set = asyncio.Event()
        """A source was set, and nothing of it has been shown yet."""

    @property
    def is_callback(self) -> bool:
        """Whether asking again may give another token."""
        return callable(self._source)

    def set(self, source: TokenSource | None) -> None:
        """Take tokens from elsewhere from now on; raises ``ValueError`` for what gives none."""
        self._source = valid_source(source)
        self.generation += 1
        self._last = None
        self.forget_refusal()
        self._set.set()

    def next_generation(self, generation: int) -> int:
        """The callback of this generation returned a token of another user: count it as a new
        source, unless it was replaced already. Return the generation that counts."""
        if self.generation == generation:
            self.generation += 1
            return self.generation
        return generation

    async def wait_until_due(self, within: float | None) -> None:
        """Return after so many seconds (None: never), or as soon as a source is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._set.wait()

    def renew_in(self) -> float | None:
        """Seconds until it is time for a new one; None if nobody knows."""
        if self._last is None or self._last.renew_at is None:
            return None
        return max(0.0, self._last.renew_at - self._now())

    def discard(self) -> None:
        """The server does not want it: the next is a new one."""
        self._last = None

    def forget_refusal(self) -> None:
        """The server has let the client in."""
        self._refused = None

    def has_alternative(self, error: EyewallError, *, stale: bool) -> bool:
        """Whether a client that got this refusal has another token to show: a source was set
        meanwhile, or, if it was for the token (``stale``), the callback is asked once more."""
        if self._set.is_set():
            return True
        if not stale or not self.is_callback or self._refused is not None:
            return False
        assert isinstance(error, Refused)
        self._refused = (self._shown, error)
        return True

    async def get(self) -> str | None:
        """Return the token to show; None for a client without one.

        Raises what the callback raises, ``ValueError`` if it gives no token, and the refusal
        if it gives the one again that was just refused.
        """
        if self._last is not None and self.renew_in():
            text: str | None = self._last.text
        else:
            text = await self.renew()
        if self._refused is not None and self._refused[0] == text:
            raise self._refused[1].with_traceback(None)
        self._shown = text
        return text

    async def renew(self) -> str | None:
        """Return a new one, if there is a callback to be asked; else that which stays."""
        while callable(source := self._source):
            self._set.clear()
            given = await _asked(source)
            if source is self._source:
                self._last = parse_token(given, now=self._now(), wall=self._wall())
                return self._last.text
        self._set.clear()
        return source


async def _asked(source: Callable[[], Given | Awaitable[Given]]) -> Given:
    given = source()
    if not inspect.isawaitable(given):
        return given
    try:
        return await given
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise RuntimeError("the token callback was cancelled") from None
