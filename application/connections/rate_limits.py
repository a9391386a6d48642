"""Rate limits: each message of a client passes the limiter of the node.

Rules of this file:

1. All limits count under the same key: the user with all their connections, else the
   address (an IPv6 one with its /64), else the connection.
2. A limiter that answers at once is called before the message is queued in a lane. An async
   limiter is awaited in the lane, and blocks only that lane.
3. An answer that is no time (NaN, a text, a bool) refuses the message: a broken limiter must
   not silently allow everything.
4. A client that resumes its session, or refreshes its token, is exempt once: ``_is_exempt``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final

from eyewall.application.connections.limits import counted_as
from eyewall.application.connections.registry import Connection
from eyewall.application.ports.conformance import is_async
from eyewall.application.ports.logging import shown
from eyewall.domain.envelope import REFRESH, RESUME, Envelope
from eyewall.domain.errors import Misuse, RateLimited
from eyewall.domain.rate import TICK

TEXT: Final = "too many messages"


_NEVER: Final = datetime.max.replace(tzinfo=UTC)


_COMEBACKS: Final = frozenset({RESUME, REFRESH})


_counted_as = lru_cache(maxsize=1024)(counted_as)
"""Cached, because parsing an address takes as long as some handlers do: 1,024 addresses."""


Rest = Callable[[], Awaitable[None]]
"""Awaits the decision of an async limiter. Raises as ``RateLimits.ask`` does."""


def key_of(conn: Connection) -> str:
    """Return the key that the messages of a connection are counted under."""
    meta = conn.meta
    if meta.user_id is not None:
        return f"user:{meta.user_id}"
    return f"ip:{_counted_as(meta.ip)}" if meta.ip else f"conn:{conn.id}"


def check(said: object) -> None:
    """Apply a limiter's answer ``said``: seconds or a ``timedelta``; 0 or less passes.

    Raises ``RateLimited`` with the seconds to wait, ``Misuse`` for an answer that is no time.
    """
    wait: Any = said.total_seconds() if isinstance(said, timedelta) else said
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or math.isnan(wait):
        raise Misuse(f"a limiter returns the seconds to wait, 0.0 to go on, not {shown(said):.80}")
    if wait > 0:
        raise RateLimited(_rounded(wait), TEXT)


def _rounded(wait: float) -> float:
    """Return whole milliseconds, rounded up: a client that waits so long passes then."""
    shown = round(wait, 3)
    return shown if shown >= wait - TICK else round(shown + 0.001, 3)


class RateLimits:
    """Applies the limiter of a node to messages."""

    def __init__(self, allow: Callable[[str], Any]) -> None:
        self._allow = allow
        self._waits = is_async(allow)
        """Whether it is async, as far as is known."""

    def ask(self, conn: Connection, message: Envelope) -> Rest | None:
        """Return None if the message passes, or a function to be awaited for the decision.

        Raises ``RateLimited`` if it may not pass, or what the limiter raised.
        """
        key = key_of(conn)
        if self._waits:
            return partial(self._ask_on, conn, message, key)
        said = self._allow(key)
        if said == 0.0 and type(said) is float:  # the common case
            return None
        if inspect.isawaitable(said):
            self._waits = True  # from now on it is called in the lane
            return partial(self._ask_on, conn, message, key, said)
        self._check(conn, message, said)
        return None

    async def _ask_on(
        self, conn: Connection, message: Envelope, key: str, said: Awaitable[Any] | None = None
    ) -> None:
        found: Any = self._allow(key) if said is None else said
        self._check(conn, message, await found if inspect.isawaitable(found) else found)

    @staticmethod
    def _check(conn: Connection, message: Envelope, said: object) -> None:
        try:
            check(said)
        except RateLimited:
            if message.topic not in _COMEBACKS or not _is_exempt(conn, message.topic):
                raise


def _is_exempt(conn: Connection, topic: str) -> bool:
    """Whether a resume or refresh passes in spite of the limiter; notes that it has.

    The first ``system:resume`` of a connection is exempt, and one ``system:refresh`` for each
    of its tokens. The protocol requires both at a moment that the client does not choose, and
    without them the client loses its rooms or its connection. Further ones are limited like
    other messages, so neither is a way around the limit.
    """
    resumed, until = conn.exemptions
    if topic == RESUME:
        conn.exemptions = True, until
        return not resumed
    # Tokens count by their end, which must grow: alternating two tokens is no way around.
    end = conn.meta.expires_at or _NEVER
    if until is not None and end <= until:
        return False
    conn.exemptions = resumed, end
    return True
