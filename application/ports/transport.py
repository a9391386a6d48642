"""The ports between the application and the sockets, in both directions.

``Link``, ``BroadcastGroup`` and ``MessageWriter`` are what the web adapter provides;
``TransportEvents`` is what it calls. Each docstring is the contract.
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


class Link(Protocol):
    """The socket side of one connection.

    * messages leave in the order of ``send`` and ``broadcast``; a message is written whole or
      not at all;
    * the close frame is the last one; later sends are ignored;
    * an end that ``close`` did not ask for is reported to ``TransportEvents.lost``, once.
    """

    owner: Any
    """The application's connection; set by the application, None before."""
    codec: Codec

    @property
    def queued(self) -> int:
        """Messages that wait because the peer reads too slowly."""

    @property
    def is_half_full(self) -> bool:
        """Whether the queue is at least half full: backpressure for bulk sending."""

    @property
    def last_seen(self) -> float:
        """When bytes last came in, on the clock's ``now``."""

    def read_pending(self) -> None:
        """Read the input that has arrived, and pass it on, before a deadline is applied.

        Must not be called from within ``TransportEvents``.
        """

    def send(self, encoded: EncodedMessage) -> Offer:
        """Queue one message without waiting; the outcome says whether it will be written."""

    def close(self, reason: DisconnectReason) -> None:
        """Write the queued messages, then the close frame, then close the socket."""


class BroadcastGroup(Protocol):
    """Links that get the same messages: a room's, or all of the node."""

    def add(self, link: Link) -> None:
        """Add a link. Idempotent."""

    def discard(self, link: Link) -> None:
        """Remove a link. Idempotent."""

    def __len__(self) -> int:
        """Return the number of links."""

    def __iter__(self) -> Iterator[Link]:
        """Iterate over the links."""

    def broadcast(self, encoded: EncodedMessage, skip: Collection[Link] = ()) -> int:
        """Queue a message for the current links, except ``skip``; returns their number."""


class MessageWriter(Protocol):
    """Writes for all links of the node, in one batch per iteration of the loop."""

    def new_group(self) -> BroadcastGroup:
        """Return a new, empty group."""

    async def ready(self) -> None:
        """Wait while too many messages wait to be written: backpressure for publishers."""


class ConnectionSlot(Protocol):
    """A connection's slot in the connection limits, from the handshake on."""

    def release(self) -> None:
        """Free the slot. Idempotent."""


class TransportEvents(Protocol):
    """What the web adapter reports to the application."""

    def reserve(self, ip: str | None) -> ConnectionSlot:
        """Count a handshake against the limits; raises ``ShuttingDown`` or ``Overloaded``."""

    def authenticate(self, handshake: Handshake) -> MaybeAwaitable[ConnMeta]:
        """Return the client's identity; raises ``Unauthorized``."""

    async def open(
        self, link: Link, meta: ConnMeta, reservation: ConnectionSlot, *, session: bool
    ) -> bool:
        """Register the link, send the welcome (if ``session``), run the hooks.

        Returns True when reading may begin; False if the connection was refused and closed.
        From this call on the connection owns the reservation.
        """

    def received(self, link: Link, payload: bytes, *, binary: bool) -> None:
        """Take one complete message. Never waits, never raises."""

    def dropped(self, link: Link, encoded: EncodedMessage, offer: Offer) -> None:
        """Report that a message that ``send`` or a group had accepted will not be written.

        ``CLOSED``: it was not written before the link ended. ``EXPIRED``: its time was over.
        Any other: it did not fit the queue.
        """

    def drained(self, link: Link) -> None:
        """Report that the link's queue, filled by a slow peer, is empty again."""

    def lost(
        self, link: Link, reason: DisconnectReason, error: BaseException | None = None
    ) -> None:
        """Report that the link has ended, or is ending by the adapter's decision."""
