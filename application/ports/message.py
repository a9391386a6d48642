"""Encoded messages and codecs.

An outgoing message is encoded once, and converted at most once into each wire format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from eyewall.domain.envelope import Envelope, Format, Message, Priority, StreamPosition
from eyewall.domain.errors import Refused
from eyewall.domain.history import Position
from eyewall.domain.identity import RoomId


class MalformedMessage(Refused):
    """Bytes from the bus, a store or a history are not a message."""


class WireFormat(Protocol):
    """One format of messages on a socket: a codec, compressed or not."""

    name: str

    def build(self, encoded: EncodedMessage) -> bytes:
        """Return the bytes for the socket, with their WebSocket frame headers."""


@runtime_checkable
class Transcoder(Protocol):
    """A codec that converts messages from the canonical codec. Optional: test with isinstance.

    A client of this codec gets the same data as a client of JSON, whether the message was
    encoded here, came from another node or is a stored answer.
    """

    def recode(self, payload: bytes) -> bytes:
        """Return a message of the canonical codec (JSON) in this codec."""


@runtime_checkable
class Acknowledges(Protocol):
    """A codec with a fast path for the plain ack. Optional: test with isinstance.

    The plain ack is the most frequent answer, and only two texts in it vary.
    """

    def ack(self, request_id: str, topic: str) -> bytes:
        """Return the ack of a request whose handler returned nothing."""


class EncodedMessage:
    """One message on its way to one or to thousands of connections.

    ``payload`` is the message in the canonical codec (JSON); for a raw message it is the
    application's own data. ``message`` and ``recipient`` (as the caller named it) are for
    failure reports; ``recipient`` None means the connection itself. ``envelope`` may be a
    function that returns the envelope, called on first use. ``stream`` is the room and
    ``position`` the offset in its history, for a room with history.
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
        """Without an envelope: ``payload`` is sent as it is, in a text or binary frame."""
        self.binary = binary
        self.expires: float | None = None
        """When the message expires, on the clock's ``now``."""
        self.built_for: str | None = None
        """The wire format that was built first: nearly always the only one."""
        self.built = b""
        """The bytes in that wire format."""
        self._forms: dict[str, bytes] | None = None

    @property
    def envelope(self) -> Envelope | None:
        """The envelope; None for a raw message."""
        if callable(self._envelope):
            self._envelope = self._envelope()
        return self._envelope

    def addressed(self, recipient: str) -> EncodedMessage:
        """Return the same message for another recipient's reports. It shares the bytes."""
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
        """Return the same message with its offset in the room's history.

        It is not encoded again: the position is inserted into the payload.
        """
        envelope = self.envelope
        if envelope is not None:
            envelope = envelope.with_position(StreamPosition(room_id, at.epoch, at.offset))
        encoded = EncodedMessage(
            add_position(self.payload, room_id, at),
            envelope=envelope,
            message=self.message,
            priority=self.priority,
            stream=room_id,
            position=at,
            recipient=self.recipient,
            fan_out=self.fan_out,
        )
        encoded.expires = self.expires
        return encoded

    @property
    def size(self) -> int:
        """Bytes of the payload: the unit of the queues' bounds."""
        return len(self.payload)

    @property
    def body(self) -> bytes:
        """The payload, shared by copies for other recipients."""
        return self.payload

    def for_wire(self, wire: WireFormat) -> bytes:
        """Return the bytes for ``wire``, built on first use and then shared."""
        if self.built_for == wire.name:
            return self.built
        if self._forms is not None and (built := self._forms.get(wire.name)) is not None:
            return built
        # ``build`` may build another wire format first, and that call stores it.
        built = wire.build(self)
        self._keep(wire.name, built)
        return built

    def _keep(self, name: str, built: bytes) -> None:
        if self.built_for is None and self._forms is None:
            self.built_for, self.built = name, built
        else:
            self._shared()[name] = built

    def _shared(self) -> dict[str, bytes]:
        """Return the bytes by wire format: for copies and for a second format."""
        if self._forms is None:
            self._forms = {} if self.built_for is None else {self.built_for: self.built}
        return self._forms


def add_position(payload: bytes, room_id: RoomId, at: Position) -> bytes:
    """Insert a position into an encoded message, whose last byte is the object's bracket."""
    stream = {"room": room_id, "epoch": at.epoch, "offset": at.offset}
    return b'%s,"stream":%s}' % (payload[:-1], json.dumps(stream, separators=(",", ":")).encode())


class Codec(Protocol):
    """Encodes envelopes to bytes and decodes them."""

    name: str
    subprotocol: str
    binary: bool
    """Whether envelopes travel in binary frames."""

    @property
    def format(self) -> Format:
        """The format that decodes the payload of an envelope on demand."""

    def decode(self, payload: bytes | str) -> Envelope:
        """Return the envelope; raises ``InvalidJson`` or ``InvalidEnvelope``."""

    def encode(self, envelope: Envelope) -> bytes:
        """Return the bytes; raises ``Misuse`` for data that the format can't represent."""


def read_message(
    codec: Codec,
    payload: bytes,
    priority: int,
    *,
    recipient: str | None = None,
    fan_out: bool = False,
) -> EncodedMessage:
    """Read a message that another node encoded; raises ``MalformedMessage``.

    The bytes are forwarded unchanged. They are decoded to validate them: the bus is not trusted.
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
    """Read a text that another node sent; raises ``MalformedMessage``."""
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(str(error)) from None
