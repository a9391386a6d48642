"""TODO"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from eyewall.domain.connection import DisconnectReason
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta, RoomId

T = TypeVar("T")


MaybeAwaitable: TypeAlias = "T | Awaitable[T]"


# --- rules that a user may bring


class Authenticator(Protocol):
    """Says who knocks. None, or ``Unauthorized``, refuses: with 401, or with a close (4504)
    where ``refuse_with`` says so."""

    def authenticate(self, handshake: Handshake) -> MaybeAwaitable[ConnMeta | None]:
        """Return who it is, or None for one who is not let in."""


class AccessController(Protocol):
    """Says who may send what, and who may listen where."""

    def can_publish(self, meta: ConnMeta, topic: str, event: str) -> MaybeAwaitable[bool]:
        """Asked for each message that a client sends; what it publishes into a room by itself
        has the topic ``room:<room>``. False is ``Forbidden``."""

    def can_subscribe(self, meta: ConnMeta, room_id: RoomId) -> MaybeAwaitable[bool]:
        """Asked for each join, by whomever. False is ``Forbidden``."""


class Validator(Protocol):
    """Checks payloads by topic; raises ``ValidationError``."""

    def validate(self, topic: str, event: str, data: Any) -> MaybeAwaitable[None]:
        """Return if the payload is as it should be, and raise otherwise."""


class Limiter(Protocol):
    """Says how long ``key`` has to wait, in seconds: 0.0 (or less) means go on.

    ``key`` is ``user:<id>``, else ``ip:<address>`` (of an IPv6 one its /64 network), else
    ``conn:<id>``. What is no number refuses the message with ``internal``, and is logged; an
    infinite wait refuses it too. What the limiter raises is the answer, as if a handler had
    raised it.
    """

    def allow(self, key: str) -> MaybeAwaitable[float]:
        """Count one for ``key``; returns the seconds to wait, and 0.0 if it may go on."""


# --- watching


class Metrics(Protocol):
    """One method per fact. Labels are route patterns and enums only.

    Times are in seconds. An implementation never raises and never waits.
    """

    def connected(self) -> None: ...
    def disconnected(self, reason: DisconnectReason) -> None: ...
    def received(self, route: str) -> None:
        """A message came; ``route`` is its pattern, or ``-`` where none matched."""

    def sent(self, messages: int) -> None: ...
    def dropped(self, reason: str, messages: int) -> None: ...
    def failed(self, code: str) -> None:
        """An error or nack was sent."""

    def handled(self, route: str, seconds: float) -> None: ...
    def acked(self, outcome: str, seconds: float) -> None:
        """An ack was settled: ``ok``, ``nack``, ``timeout`` or ``closed``."""

    def published(self, messages: int) -> None:
        """Messages handed to the bus."""

    def consumed(self, messages: int) -> None:
        """Messages of other nodes taken from the bus."""


@runtime_checkable
class WatchesNode(Protocol):
    """Metrics that want the facts of the node, too, beside those of its messages. Optional:
    each method by itself.

    Labels are words of a fixed list. The same promises hold as for ``Metrics``.
    """

    def refused(self, reason: str) -> None:
        """A handshake was refused, for a reason of a fixed list."""

    def incident(self, name: str, count: int) -> None:
        """Something happened ``count`` times that concerns no single client; ``name`` is
        the value of an ``Incident``."""

    def loop_lag(self, seconds: float) -> None:
        """How late the event loop was with a timer, measured about once a second."""


class Tracer(Protocol):
    """Gives spans that last as long as their contexts."""

    def span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> AbstractContextManager[Any]:
        """Return the span of one message, child of what its ``headers`` say."""


class Logger(Protocol):
    """structlog's own loggers fit."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...


def method(port: Any, name: str) -> Callable[..., Any]:
    """Return a port's one method, or the port itself where it is a plain callable."""
    found = getattr(port, name, port)
    if not callable(found):
        raise ValueError(f"{port!r} has no {name}() and can't be called")
    return found  # type: ignore[no-any-return]
