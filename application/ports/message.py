"""An outgoing message: encoded once, turned at most once into each wire form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from eyewall.domain.envelope import Envelope, Format, Message, Priority, StreamPosition
from eyewall.domain.errors import Refused
from eyewall.domain.history import Position
from eyewall.domain.identity import RoomId


class MalformedMessage(Refused):
    """Bytes from the bus, a store or a history that are not a message."""


class WireFormat(Protocol):
    """One way of putting messages on a socket (a codec, compressed or not)."""

    name: str

    def build(self, frame: EncodedMessage) -> bytes:
        """Return the bytes that go to the socket, framing included."""


@runtime_checkable
class Transcoder(Protocol):
    """A codec that takes over messages in the canonical one. Optional: ask with isinstance.

    What a client of it gets is then what a client of JSON gets, whether the message was
    made here, came from another node or is an answer that was kept.
    """

    def recode(self, payload: bytes) -> bytes:
        """Return a message in this codec."""


@runtime_checkable
class Acknowledges(Protocol):
    """A codec that writes the usual ack in one go. Optional: ask with isinstance.

    It is the most frequent answer of all, and nothing in it varies but two texts.
    """

    def ack(self, request_id: str, topic: str) -> bytes:
        """Return the ack of a request whose handler returned nothing."""


class EncodedMessage:
    """One message on its way to one or to thousands of connections.

    ``payload`` is the message in the canonical codec (JSON); for a raw frame it is
    what the user handed in. ``message`` and ``recipient`` (what the caller named)
    are for failure reports; ``recipient`` None means the connection itself. The
    envelope may be given as the function that makes it, where hardly anybody asks.
    ``stream`` names the room and ``position`` the place in its history, where it has one.
    """

    __slots__ = (
        "_envelope",
        "_forms",
        "binary",
        "built",
        "built_for",
        "expires",
        "fan_out",
        "message",
        "payload",
        "position",
        "priority",
        "raw",
        "recipient",
        "stream",
    )

    def __init__(
        self,
        payload: bytes,
        *,
        envelope: Envelope | Callable[[], Envelope] | None = None,
        message: Message | None = None,
        priority: Priority = Priority.NORMAL,
        stream: str | None = None,
        position: Position | None = None,
        recipient: str | None = None,
        fan_out: bool = False,
        raw: bool = False,
        binary: bool = False,
    ) -> None:
        self.payload = payload
        self._envelope = envelope
        self.message = message
        self.priority = priority
        self.stream = stream
        self.position = position
        self.recipient = recipient
        self.fan_out = fan_out
        self.raw = raw
        """No envelope: ``payload`` goes out as it is, in a text or binary frame."""
        self.binary = binary
        self.expires: float | None = None
        """When it is worth nothing any more, on the clock's ``now``."""
        self.built_for: str | None = None
        """The wire whose form was built first: nearly always the only one."""
        self.built = b""
        """The bytes for that wire."""
        self._forms: dict[str, bytes] | None = None

    @property
    def envelope(self) -> Envelope | None:
        if callable(self._envelope):
            self._envelope = self._envelope()
        return self._envelope

    def addressed(self, recipient: str) -> EncodedMessage:
        """The same message, for reports about another recipient; the bytes are shared."""
        copy = EncodedMessage(
            self.payload,
            envelope=self._envelope,
            message=self.message,
            priority=self.priority,
            stream=self.stream,
            position=self.position,
            recipient=recipient,
            fan_out=self.fan_out,
            raw=self.raw,
            binary=self.binary,
        )
        copy._forms = self._shared()
        copy.expires = self.expires
        return copy

    def with_position(self, room_id: RoomId, at: Position) -> EncodedMessage:
        """The same message at its place in the room's history. It is not encoded again."""
        envelope = self.envelope
        if envelope is not None:
            envelope = envelope.with_position(StreamPosition(room_id, at.epoch, at.offset))
        frame = EncodedMessage(
            add_position(self.payload, room_id, at),
            envelope=envelope,
            message=self.message,
            priority=self.priority,
            stream=room_id,
            position=at,
            recipient=self.recipient,
            fan_out=self.fan_out,
        )
        frame.expires = self.expires
        return frame

    @property
    def size(self) -> int:
        """Bytes of the payload, by which queues are bounded."""
        return len(self.payload)

    @property
    def body(self) -> bytes:
        """The payload, which copies for other recipients share."""
        return self.payload

    def form(self, wire: WireFormat) -> bytes:
        """Return the bytes for ``wire``, built on first use and then shared."""
        if self.built_for == wire.name:
            return self.built
        if self._forms is not None and (built := self._forms.get(wire.name)) is not None:
            return built
        # It may be built on another wire's form, which is kept by that.
        built = wire.build(self)
        self._keep(wire.name, built)
        return built

    def _keep(self, name: str, built: bytes) -> None:
        if self.built_for is None and self._forms is None:
            self.built_for, self.built = name, built
        else:
            self._shared()[name] = built

    def _shared(self) -> dict[str, bytes]:
        """The forms by wire, for copies and for a second wire."""
        if self._forms is None:
            self._forms = {} if self.built_for is None else {self.built_for: self.built}
        return self._forms


def add_position(payload: bytes, room_id: RoomId, at: Position) -> bytes:
    """Put a position into an encoded message, whose last byte is the object's bracket."""
    stream = {"room": room_id, "epoch": at.epoch, "offset": at.offset}
    return b'%s,"stream":%s}' % (payload[:-1], json.dumps(stream, separators=(",", ":")).encode())


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


def read_message(
    codec: Codec,
    payload: bytes,
    priority: int,
    *,
    recipient: str | None = None,
    fan_out: bool = False,
) -> EncodedMessage:
    """Take over a message that another node encoded; raises ``MalformedMessage``.

    The bytes go on as they are; they are decoded because the bus is not trusted.
    """
    try:
        envelope = codec.decode(payload)
        level = Priority(priority)
        message = Message(envelope.topic, envelope.event, envelope.raw, envelope.id)
    except (Refused, ValueError) as error:
        raise MalformedMessage(f"not a message: {error}") from None
    return EncodedMessage(
        payload,
        envelope=envelope,
        message=message,
        priority=level,
        recipient=recipient,
        fan_out=fan_out,
    )


def read_text(payload: bytes) -> str:
    """Take over a text that another node sent; raises ``MalformedMessage``."""
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(str(error)) from None
