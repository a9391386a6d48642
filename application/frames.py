"""An outgoing message: encoded once, turned at most once into each wire form."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from eyewall.domain.envelope import Envelope, Message, Priority


class Wire(Protocol):
    """One way of putting messages on a socket (a codec, compressed or not)."""

    name: str

    def build(self, frame: Frame) -> bytes:
        """Return the bytes that go to the socket, framing included."""


@runtime_checkable
class Recodes(Protocol):
    """A codec that takes over messages in the canonical one. Optional: ask with isinstance.

    What a client of it gets is then what a client of JSON gets, whether the message was
    made here, came from another node or is an answer that was kept.
    """

    def recode(self, payload: bytes) -> bytes:
        """Return a message in this codec."""


class Frame:
    """One message on its way to one or to thousands of connections.

    ``payload`` is the message in the canonical codec (JSON); for a raw frame it is
    what the user handed in. ``message`` and ``recipient`` (what the caller named)
    are for failure reports; ``recipient`` None means the connection itself.
    """

    __slots__ = (
        "_forms",
        "binary",
        "envelope",
        "fan_out",
        "message",
        "payload",
        "priority",
        "raw",
        "recipient",
        "stream",
    )

    def __init__(
        self,
        payload: bytes,
        *,
        envelope: Envelope | None = None,
        message: Message | None = None,
        priority: Priority = Priority.NORMAL,
        stream: str | None = None,
        recipient: str | None = None,
        fan_out: bool = False,
        raw: bool = False,
        binary: bool = False,
    ) -> None:
        self.payload = payload
        self.envelope = envelope
        self.message = message
        self.priority = priority
        self.stream = stream
        self.recipient = recipient
        self.fan_out = fan_out
        self.raw = raw
        """No envelope: ``payload`` goes out as it is, in a text or binary frame."""
        self.binary = binary
        self._forms: dict[str, bytes] = {}

    def addressed(self, recipient: str) -> Frame:
        """The same message, for reports about another recipient; the bytes are shared."""
        copy = Frame(
            self.payload,
            envelope=self.envelope,
            message=self.message,
            priority=self.priority,
            stream=self.stream,
            recipient=recipient,
            fan_out=self.fan_out,
            raw=self.raw,
            binary=self.binary,
        )
        copy._forms = self._forms
        return copy

    @property
    def size(self) -> int:
        """Bytes of the payload, by which queues are bounded."""
        return len(self.payload)

    def form(self, wire: Wire) -> bytes:
        """Return the bytes for ``wire``, built on first use and then shared."""
        built = self._forms.get(wire.name)
        if built is None:
            built = self._forms[wire.name] = wire.build(self)
        return built
