"""What the application needs from outside, as promises: all but what the nodes share.

Every port's docstring is its contract, and ``eyewall.testing.contracts`` holds adapters to it.
Methods may be plain or ``async`` where a call may have to wait, if so marked with
``MaybeAwaitable``; where a port has one method, a plain callable will do. ``stores`` has the ports
of the cluster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

from eyewall.application.ports.message import Codec, EncodedMessage
from eyewall.application.ports.plugins import MaybeAwaitable
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta
from eyewall.domain.outbox import Offer

# --- the sockets


class Link(Protocol):
    """The socket side of one connection.

    * frames leave in the order of ``send``, room messages included; one is written
      whole or not at all;
    * ``close`` is the last thing that is sent; later sends are ignored;
    * whatever ends the link by itself is told to ``TransportEvents.lost``, once; an end that
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
        not. Not to be called from within ``TransportEvents``."""

    def send(self, frame: EncodedMessage) -> Offer:
        """Queue one message; the outcome says whether it will be written."""

    def close(self, reason: DisconnectReason) -> None:
        """Write what is queued, then the close frame, then go (protocol.md)."""


class BroadcastGroup(Protocol):
    """Links that get the same messages: a room, or everybody on the node."""

    def add(self, link: Link) -> None: ...
    def discard(self, link: Link) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Link]: ...

    def publish(self, frame: EncodedMessage, skip: Collection[Link] = ()) -> int:
        """Send to all who are in it now, except ``skip``; returns how many these are."""


class MessageWriter(Protocol):
    """Writes for all links of the node, collected per turn of the loop."""

    def audience(self) -> BroadcastGroup:
        """Return a new, empty audience."""

    async def ready(self) -> None:
        """Return when the frames that wait to be written are few enough for more."""


class ConnectionSlot(Protocol):
    """A connection's place in the limits, from the handshake on."""

    def release(self) -> None:
        """Give it back. May be called again."""


class TransportEvents(Protocol):
    """What the web adapter tells the application."""

    def reserve(self, ip: str | None) -> ConnectionSlot:
        """Count a handshake against the limits; raises ``ShuttingDown`` or ``Overloaded``."""

    def authenticate(self, handshake: Handshake) -> MaybeAwaitable[ConnMeta]:
        """Say who knocks; raises ``Unauthorized``. To be awaited if it has to wait."""

    async def open(
        self, link: Link, meta: ConnMeta, reservation: ConnectionSlot, *, session: bool
    ) -> bool:
        """Register the link, welcome it (``session``), run the hooks.

        Returns True when reading may begin; False if it was refused and closed. From
        this call on the reservation belongs to the connection.
        """

    def received(self, link: Link, payload: bytes, *, binary: bool) -> None:
        """Take one whole message in. Never waits, never raises."""

    def dropped(self, link: Link, frame: EncodedMessage, offer: Offer) -> None:
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
