"""Counts and logs refused handshakes.

Rules of this file:

1. The log is throttled, so that a flood of refusals does not fill a disk: at most ``LINES``
   lines for each reason in ``PERIOD`` seconds. A timer then logs how many were left out, for all
   reasons at once.
2. Text from a client is logged cut to a length, in characters that can't forge a line, and never
   with a query, a cookie or a token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tornado.httputil import HTTPHeaders

from eyewall.adapters.web.http.proxies import TrustedProxies
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.logging import LINES, PERIOD
from eyewall.application.ports.plugins import Logger
from eyewall.domain.handshake import RefusalReason

MAX_SHOWN_CHARACTERS: Final = 128
"""Characters of an origin or a host in a log line. A DNS name may have 253, but a log line should
stay readable."""

_NOTEWORTHY: Final = frozenset(
    {
        RefusalReason.ORIGIN,
        RefusalReason.HOST,
        RefusalReason.ORIGIN_CHECK_FAILED,
        RefusalReason.AUTHENTICATOR_FAILED,
        RefusalReason.INTERNAL,
        RefusalReason.UNAVAILABLE,
        RefusalReason.OVERLOADED,
        RefusalReason.CONNECTIONS,
    }
)
"""Reasons that point at a setting or at trouble of the server. The others are the client's fault
and occur every day."""


class RefusalLog:
    """Counts every refused handshake, and logs it unless it is throttled."""

    def __init__(self, clock: Clock, logger: Logger, proxies: TrustedProxies) -> None:
        self.count: Callable[[str], None] | None = None
        """Called with each reason. Set when the node is built."""
        self._clock = clock
        self._proxies = proxies
        self._logger = logger
        self._lines: Counter[RefusalReason] = Counter()
        self._left_out: Counter[RefusalReason] = Counter()
        self._since = -PERIOD
        self._timer: Timer | None = None

    def report(
        self,
        reason: RefusalReason,
        status: int | None,
        *,
        headers: HTTPHeaders | None = None,
        peer: str | None = None,
        hint: Callable[[], str | None] | None = None,
        **more: Any,
    ) -> None:
        """Report a handshake that was answered with ``status``, or aborted without an answer
        (None).

        ``headers`` are those of the request, as far as it was read. ``peer`` is the address of
        the TCP connection, which may be a proxy's. ``hint`` returns a text about the reason; it
        is called only if a line is logged. ``more`` are further fields of the line.
        """
        if self.count is not None:
            self.count(reason.value)
        now = self._clock.now()
        if now - self._since >= PERIOD and self._timer is None:
            self._since = now
            self._lines.clear()
        self._lines[reason] += 1
        if self._lines[reason] > LINES:
            self._left_out[reason] += 1
            if self._timer is None:
                self._timer = self._clock.call_later(self._since + PERIOD - now, self._log_left_out)
            return
        host = _field(headers, "Host")
        known = None if hint is None else hint()
        if known is None and reason is RefusalReason.HOST:
            known = f"Host {host} is not in allowed_hosts"
        if known is not None:
            more = {"hint": known, **more}
        write = self._logger.warning if reason in _NOTEWORTHY else self._logger.info
        write(
            "handshake_refused",
            status=status,
            reason=reason.value,
            origin=_field(headers, "Origin"),
            host=host,
            address=self._proxies.client(peer, _all(headers, "X-Forwarded-For")),
            **more,
        )

    def close(self) -> None:
        """Log the counts that the timer would have logged."""
        if self._timer is not None:
            self._timer.cancel()
            self._log_left_out()

    def _log_left_out(self) -> None:
        self._timer = None
        self._lines.clear()
        self._since = self._clock.now()
        for reason, times in self._left_out.items():
            self._logger.warning("handshakes_refused", reason=reason.value, left_out=times)
        self._left_out.clear()


def _field(headers: HTTPHeaders | None, name: str) -> str | None:
    values = _all(headers, name)
    return sanitized(values[0]) if values else None


def _all(headers: HTTPHeaders | None, name: str) -> list[str]:
    return [] if headers is None else headers.get_list(name)


def sanitized(text: str) -> str:
    """Return a text from a client in a form that is safe in a log line."""
    cut = text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
    shown = "".join(c if c.isascii() and c.isprintable() else f"\\x{ord(c):02x}" for c in cut)
    # A URL in the place of an origin may contain a password or a query.
    before, at, after = shown.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    if at:
        shown = f"{scheme}{slashes}{after}" if slashes else after
    return shown.partition("?")[0].partition("#")[0]
