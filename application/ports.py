"""What the application needs from outside, as promises: all but what the nodes share.

Every port's docstring is its contract, and ``eyewall.testing.contracts`` holds adapters to it.
Methods may be plain or ``async`` where a call may have to wait, if so marked with
``Maybe``; where a port has one method, a plain callable will do. ``stores`` has the ports
of the cluster.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from eyewall.application.frames import Frame
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Envelope, Format
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta, RoomId
from eyewall.domain.outbox import Offer

T = TypeVar("T")
Maybe: TypeAlias = "T | Awaitable[T]"


# --- time


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time, so that tests can move it by hand."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def wall(self) -> datetime:
        """The date and time, aware, in UTC."""

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call ``fn`` after ``delay`` seconds."""


# --- the sockets


class Link(Protocol):
    """The socket side of one connection.

    * frames leave in the order of ``send``, room messages included; one is written
      whole or not at all;
    * ``close`` is the last thing that is sent; later sends are ignored;
    * whatever ends the link by itself is told to ``Intake.lost``, once; an end that
      ``close`` asked for is not.
    """

    owner: Any
    """The application's connection; set by the application, None before."""
    codec: Codec

    @property
    def queued(self) -> int:
        """Messages that wait because the peer does not read."""

    @property
    def crowded(self) -> bool:
        """Whether half of what may wait for the peer does: no time to send it a lot."""

    @property
    def last_seen(self) -> float:
        """When anything last came, on the clock's ``now``."""

    def look(self) -> None:
        """Read what has come by now, and hand it on: before the peer is judged by what has
        not. Not to be called from within ``Intake``."""

    def send(self, frame: Frame) -> Offer:
        """Queue one message; the outcome says whether it will be written."""

    def close(self, reason: DisconnectReason) -> None:
        """Write what is queued, then the close frame, then go (protocol.md)."""


class Audience(Protocol):
    """Links that get the same messages: a room, or everybody on the node."""

    def add(self, link: Link) -> None: ...
    def discard(self, link: Link) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Link]: ...

    def publish(self, frame: Frame, skip: Collection[Link] = ()) -> int:
        """Send to all who are in it now, except ``skip``; returns how many these are."""


class Outbound(Protocol):
    """Writes for all links of the node, collected per turn of the loop."""

    def audience(self) -> Audience:
        """Return a new, empty audience."""

    async def ready(self) -> None:
        """Return when the frames that wait to be written are few enough for more."""


class Reservation(Protocol):
    """A connection's place in the limits, from the handshake on."""

    def release(self) -> None:
        """Give it back. May be called again."""


class Intake(Protocol):
    """What the web adapter tells the application."""

    def reserve(self, ip: str | None) -> Reservation:
        """Count a handshake against the limits; raises ``ShuttingDown`` or ``Overloaded``."""

    def authenticate(self, handshake: Handshake) -> Maybe[ConnMeta]:
        """Say who knocks; raises ``Unauthorized``. To be awaited if it has to wait."""

    async def open(
        self, link: Link, meta: ConnMeta, reservation: Reservation, *, session: bool
    ) -> bool:
        """Register the link, welcome it (``session``), run the hooks.

        Returns True when reading may begin; False if it was refused and closed. From
        this call on the reservation belongs to the connection.
        """

    def received(self, link: Link, payload: bytes, *, binary: bool) -> None:
        """Take one whole message in. Never waits, never raises."""

    def dropped(self, link: Link, frame: Frame, offer: Offer) -> None:
        """A message that ``send`` had taken will not be written after all.

        ``CLOSED``: it still waited when the link was gone. ``EXPIRED``: its time was over.
        Any other: it did not fit.
        """

    def drained(self, link: Link) -> None:
        """The link had a queue, because the peer did not read, and it is empty again."""

    def lost(
        self, link: Link, reason: DisconnectReason, error: BaseException | None = None
    ) -> None:
        """The link has ended, or is ending by the adapter's decision."""


# --- messages


class Codec(Protocol):
    """Turns envelopes into bytes and back."""

    name: str
    subprotocol: str
    binary: bool
    """Whether envelopes travel in binary frames."""

    @property
    def format(self) -> Format:
        """How payloads are read."""

    def decode(self, payload: bytes | str) -> Envelope:
        """Raises ``InvalidJson`` or ``InvalidEnvelope``."""

    def encode(self, envelope: Envelope) -> bytes:
        """Raises ``Misuse`` for data that the format can't hold."""


# --- rules that a user may bring


class Authenticator(Protocol):
    """Says who knocks. None, or ``Unauthorized``, refuses: with 401, or with a close (4504)
    where ``refuse_with`` says so."""

    def authenticate(self, handshake: Handshake) -> Maybe[ConnMeta | None]:
        """Return who it is, or None for one who is not let in."""


class AccessController(Protocol):
    """Says who may send what, and who may listen where."""

    def can_publish(self, meta: ConnMeta, topic: str, event: str) -> Maybe[bool]:
        """Asked for each message that a client sends; what it publishes into a room by itself
        has the topic ``room:<room>``. False is ``Forbidden``."""

    def can_subscribe(self, meta: ConnMeta, room_id: RoomId) -> Maybe[bool]:
        """Asked for each join, by whomever. False is ``Forbidden``."""


class Validator(Protocol):
    """Checks payloads by topic; raises ``ValidationError``."""

    def validate(self, topic: str, event: str, data: Any) -> Maybe[None]:
        """Return if the payload is as it should be, and raise otherwise."""


class Limiter(Protocol):
    """Says how long ``key`` has to wait, in seconds: 0.0 (or less) means go on.

    ``key`` is ``user:<id>``, else ``ip:<address>`` (of an IPv6 one its /64 network), else
    ``conn:<id>``. What is no number refuses the message with ``internal``, and is logged; an
    infinite wait refuses it too. What the limiter raises is the answer, as if a handler had
    raised it.
    """

    def allow(self, key: str) -> Maybe[float]:
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
