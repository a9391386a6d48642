"""How much one user may send: what the limiter of a node says of each message.

Rules of this file:

1. Who is counted together is said here, and for all limits alike: a user with all their
   connections, else the address (an IPv6 one with its /64), else the connection.
2. A limiter that answers at once is asked before the message has taken any place. One that
   has to wait is asked in the lane, where what it waits for holds up that lane alone.
3. What is no answer (NaN, a text, a bool) lets nothing pass: a limit that is broken must not
   be one that is off, and silently.
4. A client that comes back is not kept out: ``_is_spared``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final

from eyewall.application.connections import Connection
from eyewall.application.fitting import is_async
from eyewall.application.logs import shown
from eyewall.application.places import counted_as
from eyewall.domain.envelope import REFRESH, RESUME, Envelope
from eyewall.domain.errors import Misuse, RateLimited
from eyewall.domain.rate import TICK

TEXT: Final = "too many messages"

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_COMEBACKS: Final = frozenset({RESUME, REFRESH})

_place = lru_cache(maxsize=1024)(counted_as)
"""To read an address takes as long as some handlers do. As many as send at one time."""

Rest = Callable[[], Awaitable[None]]
"""What is left to wait for."""


def key_of(conn: Connection) -> str:
    """Return what the messages of a connection are counted under."""
    meta = conn.meta
    if meta.user_id is not None:
        return f"user:{meta.user_id}"
    return f"ip:{_place(meta.ip)}" if meta.ip else f"conn:{conn.id}"


def check(said: object) -> None:
    """Read what a limiter said: 0 or less lets the message pass.

    Raises ``RateLimited`` with the seconds to wait, ``Misuse`` for what is no time.
    """
    wait: Any = said.total_seconds() if isinstance(said, timedelta) else said
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or math.isnan(wait):
        raise Misuse(f"a limiter returns the seconds to wait, 0.0 to go on, not {shown(said):.80}")
    if wait > 0:
        raise RateLimited(_rounded(wait), TEXT)


def _rounded(wait: float) -> float:
    """In milliseconds, and not less: who comes back at that end is not sent away again."""
    shown = round(wait, 3)
    return shown if shown >= wait - TICK else round(shown + 0.001, 3)


class Limits:
    """Asks the limiter of a node."""

    def __init__(self, allow: Callable[[str], Any]) -> None:
        self._allow = allow
        self._waits = is_async(allow)
        """Whether it has to be awaited, as far as is known."""

    def ask(self, conn: Connection, message: Envelope) -> Rest | None:
        """Decide, or return what is to be called and awaited for the decision.

        A message that may not pass raises ``RateLimited``, or what the limiter raised.
        """
        key = key_of(conn)
        if self._waits:
            return partial(self._ask_on, conn, message, key)
        said = self._allow(key)
        if said == 0.0 and type(said) is float:  # nearly always
            return None
        if inspect.isawaitable(said):
            self._waits = True  # from the next message on it is not even begun before the lane
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
            if message.topic not in _COMEBACKS or not _is_spared(conn, message.topic):
                raise


def _is_spared(conn: Connection, topic: str) -> bool:
    """Whether a client that comes back may do so although the limiter says no.

    The first ``system:resume`` of a connection passes, and for each token that the connection
    shows or has shown one ``system:refresh``: both are asked for by the protocol, at a moment
    that the client does not choose, and without them it loses its rooms or its connection.
    Further ones wait like everything else, so that neither is a way around the limit.
    """
    resumed, until = conn.spared
    if topic == RESUME:
        conn.spared = True, until
        return not resumed
    # By its end, which only grows from token to token: two of them in turn are no way around.
    end = conn.meta.expires_at or _NEVER
    if until is not None and end <= until:
        return False
    conn.spared = resumed, end
    return True
