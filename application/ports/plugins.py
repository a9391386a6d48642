"""The ports of an application's own rules and observers.

Authenticator, access controller, validator, limiter; metrics, tracer, logger. A method with
``MaybeAwaitable`` may be plain or ``async``. For a port with one method a plain callable is
enough.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from eyewall.domain.connection import DisconnectReason
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta, RoomId

T = TypeVar("T")


MaybeAwaitable: TypeAlias = "T | Awaitable[T]"


# --- rules of the application


class Authenticator(Protocol):
    """Identifies the client of a handshake."""

    def authenticate(self, handshake: Handshake) -> MaybeAwaitable[ConnMeta | None]:
        """Return the client's identity; None or ``Unauthorized`` refuses the handshake.

        The refusal is a status 401, or a close with 4504 if ``refuse_with`` says so.
        """


class AccessController(Protocol):
    """Authorizes messages and joins."""

    def can_publish(self, meta: ConnMeta, topic: str, event: str) -> MaybeAwaitable[bool]:
        """Return whether the client may send this message; False is ``Forbidden``.

        Called for each message of a client. A message that the client publishes to a room
        has the topic ``room:<room>``.
        """

    def can_subscribe(self, meta: ConnMeta, room_id: RoomId) -> MaybeAwaitable[bool]:
        """Return whether the client may be in the room; False is ``Forbidden``.

        Called for each join, whether the client or the application asks for it.
        """


class Validator(Protocol):
    """Checks payloads by topic; raises ``ValidationError``."""

    def validate(self, topic: str, event: str, data: Any) -> MaybeAwaitable[None]:
        """Return for a valid payload; raises ``ValidationError`` for an invalid one."""


class Limiter(Protocol):
    """Limits the rate of messages per key.

    ``key`` is ``user:<id>``, else ``ip:<address>`` (the /64 network of an IPv6 address), else
    ``conn:<id>``. A result that is no number refuses the message with ``internal``, and is
    logged; an infinite wait refuses it too. An error that the limiter raises is the answer, as
    if a handler had raised it.
    """

    def allow(self, key: str) -> MaybeAwaitable[float]:
        """Count one message of ``key``; returns the seconds to wait, 0.0 or less to let it pass."""


# --- observers


class Metrics(Protocol):
    """One method per fact. Labels are route patterns and enums only.

    Times are in seconds. An implementation never raises and never waits.
    """

    def connected(self) -> None:
        """A connection is registered."""

    def disconnected(self, reason: DisconnectReason) -> None:
        """A connection has ended."""

    def received(self, route: str) -> None:
        """A message came in; ``route`` is its pattern, or ``-`` if none matched."""

    def sent(self, messages: int) -> None:
        """Messages were queued for clients."""

    def dropped(self, reason: str, messages: int) -> None:
        """Messages for clients were dropped; ``reason`` is a ``FailureReason`` value."""

    def failed(self, code: str) -> None:
        """An error or nack was sent."""

    def handled(self, route: str, seconds: float) -> None:
        """A handler has ended after so many seconds."""

    def acked(self, outcome: str, seconds: float) -> None:
        """An ack was settled: ``ok``, ``nack``, ``timeout`` or ``closed``."""

    def published(self, messages: int) -> None:
        """Messages were published on the bus."""

    def consumed(self, messages: int) -> None:
        """Messages of other nodes came from the bus."""


@runtime_checkable
class WatchesNode(Protocol):
    """Metrics of the node itself, beside those of its messages. Each method is optional.

    Labels are words of a fixed list. The rules of ``Metrics`` apply.
    """

    def refused(self, reason: str) -> None:
        """A handshake was refused, for a reason of a fixed list."""

    def incident(self, name: str, count: int) -> None:
        """An incident that concerns no single client happened ``count`` times; ``name`` is
        the value of an ``Incident``."""

    def loop_lag(self, seconds: float) -> None:
        """The delay of the event loop's timers, measured about once a second."""


class Tracer(Protocol):
    """Creates spans that end with their contexts."""

    def span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> AbstractContextManager[Any]:
        """Return the span of one message, a child of the span that its ``headers`` name."""


class Logger(Protocol):
    """Writes a log line: an event's name and fields. structlog's loggers fit."""

    def debug(self, event: str, **fields: Any) -> Any:
        """Write a line of this level."""

    def info(self, event: str, **fields: Any) -> Any:
        """Write a line of this level."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Write a line of this level."""

    def error(self, event: str, **fields: Any) -> Any:
        """Write a line of this level."""


def method(port: Any, name: str) -> Callable[..., Any]:
    """Return a port's one method, or the port itself if it is a plain callable.

    Raises ``ValueError`` if it is neither.
    """
    found = getattr(port, name, port)
    if not callable(found):
        raise ValueError(f"{port!r} has no {name}() and can't be called")
    return found  # type: ignore[no-any-return]
