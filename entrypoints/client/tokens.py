"""The client's token: its source, and when it is renewed.

A token with a known end is reused until shortly before it. For a token without one, the
callback is called before each connect.

Rules of this file:

1. A token that was refused is not sent again. A callback is called once more, and its token
   is tried if it is another one; otherwise the client needs a new source (``set``).
2. A source that is set while a callback runs replaces it: that token is not used.
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
enough for one slow call of the callback and another attempt."""

MAX_DOUBLINGS: Final = 4
"""Doublings of the pause between two renewals: to four minutes, for a callback whose tokens
end at once."""

Given = str | Mapping[str, Any]
"""A token, or ``{"token": ..., "expires_in": seconds}``, or with ``expires_at``: a
``datetime`` or its text (RFC 3339)."""

TokenSource = str | Callable[[], Given | Awaitable[Given]]


@dataclass(frozen=True, slots=True)
class Token:
    """A token; ``renew_at`` is in seconds of the monotonic clock, None if the end is unknown."""

    text: str = field(repr=False)
    renew_at: float | None = None


def parse_token(given: object, *, now: float, wall: float) -> Token:
    """Return the token that a callback returned; raises ``ValueError``, without the token in
    its text.

    ``now`` is the monotonic clock, ``wall`` the time of day as a timestamp.
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
    """Return the seconds until the end; None if it is unknown.

    An ``expires_at`` in the past shows that this machine's clock is wrong: it is ignored.
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
    """The waits between renewals: at least ``soonest`` seconds, ``again`` seconds after a
    failed one, and twice as many after each further one that failed or brought a token that
    ends as soon.

    >>> RenewalBackoff(soonest=15.0, again=15.0).next(left=900.0)
    900.0
    """

    __slots__ = ("_again", "_in_vain", "_soonest")

    def __init__(self, soonest: float, again: float) -> None:
        self._soonest = soonest
        self._again = again
        self._in_vain = 0

    def next(self, left: float) -> float:
        """Return the seconds to wait after a renewal whose token is due in ``left`` seconds."""
        if left >= self._soonest:
            self._in_vain = 0
            return left
        return self._later(self._soonest)

    def failed(self) -> float:
        """Return the seconds to wait after a failed renewal."""
        return self._later(self._again)

    def _later(self, first: float) -> float:
        wait = first * 2.0**self._in_vain
        self._in_vain = min(self._in_vain + 1, MAX_DOUBLINGS)
        return wait


def valid_source(source: TokenSource | None) -> TokenSource | None:
    """Return a token source; raises ``ValueError``, without the token in its text."""
    if isinstance(source, str):
        return valid_token(source)
    if source is not None and not callable(source):
        raise ValueError("token must be a text, or a function that returns one")
    return source


class Tokens:
    """A fixed token, or a callback that returns tokens."""

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
        """The refused token after which the callback is called once more, and the refusal."""
        self._set = asyncio.Event()
        """Set while no token of a new source has been used yet."""

    @property
    def is_callback(self) -> bool:
        """Whether the source is a callback: another call may return another token."""
        return callable(self._source)

    def set(self, source: TokenSource | None) -> None:
        """Replace the source; raises ``ValueError`` if it is malformed."""
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
        """Return after ``within`` seconds (None: never), or as soon as a source is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._set.wait()

    def renew_in(self) -> float | None:
        """Return the seconds until the token is due for renewal; None if its end is unknown."""
        if self._last is None or self._last.renew_at is None:
            return None
        return max(0.0, self._last.renew_at - self._now())

    def discard(self) -> None:
        """Do not reuse the current token: the server refuses it."""
        self._last = None

    def forget_refusal(self) -> None:
        """Forget the last refusal: the server has accepted a token."""
        self._refused = None

    def has_alternative(self, error: EyewallError, *, stale: bool) -> bool:
        """Return whether to try another token after this refusal: a source was set meanwhile,
        or, if the token was refused (``stale``), the callback is called once more."""
        if self._set.is_set():
            return True
        if not stale or not self.is_callback or self._refused is not None:
            return False
        assert isinstance(error, Refused)
        self._refused = (self._shown, error)
        return True

    async def get(self) -> str | None:
        """Return the token for a handshake; None for a client without one.

        Raises the callback's exception, ``ValueError`` if it returns no token, and the refusal
        if it returns the token that was just refused.
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
        """Return a new token of the callback, or the fixed token."""
        while callable(source := self._source):
            self._set.clear()
            given = await _call(source)
            if source is self._source:
                self._last = parse_token(given, now=self._now(), wall=self._wall())
                return self._last.text
        self._set.clear()
        return source


async def _call(source: Callable[[], Given | Awaitable[Given]]) -> Given:
    given = source()
    if not inspect.isawaitable(given):
        return given
    try:
        return await given
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise RuntimeError("the token callback was cancelled") from None
