"""The one shape of a message, from decode to encode (protocol.md, "Envelope")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, overload

from eyewall.domain.errors import InvalidEnvelope
from eyewall.domain.identity import MessageId, RoomId

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # ``Envelope`` without a type means any payload, for type checkers that are strict.
    T_co = TypeVar("T_co", default=Any, covariant=True)
    D = TypeVar("D")

    class Schema(Protocol):
        """A marshmallow schema, for type checkers. ``load`` is ``Any``: a dict, or the result of
        a ``post_load``, which marshmallow does not annotate."""

        declared_fields: dict[str, Any]

        def load(self, data: Any, /) -> Any: ...

    class _Payload:
        """The type of ``Envelope.data``: what a schema loads, else ``T`` itself."""

        @overload
        def __get__(self, envelope: Envelope[Schema], owner: object = ..., /) -> Any: ...
        @overload
        def __get__(self, envelope: Envelope[D], owner: object = ..., /) -> D: ...
        def __get__(self, envelope: Any, owner: object = None, /) -> Any: ...
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)
    D = TypeVar("D")

MAX_TOPIC = 256
"""Longest topic, in characters."""

MAX_FIELD = 256
"""Longest id, ref, event, namespace and version, in characters: as for the topic. Ids are
kept (for acks and retransmissions), so their memory must be bounded; a UUID has 36."""

MAX_HEADERS = 64
"""Most headers of a message. They carry trace ids and the like: a handful."""

MAX_HEADER_CHARACTERS = 16 * 1024
"""Longest names and values of a message's headers together: as much as those of the
handshake. W3C baggage, the longest usual header, has 8 KiB."""

HEADERS_TOO_MUCH = (
    f"headers must be at most {MAX_HEADERS} and {MAX_HEADER_CHARACTERS} characters together"
)

SYSTEM = "system:"
"""Topics with this prefix belong to the server."""

ROOM = "room:"
"""Messages to a room have the topic ``room:<room>``."""

REFRESH = "system:refresh"
"""The request with a new token."""

RESUME = "system:resume"
"""The request to go on with a session after a lost connection."""

ERROR_TOPIC = "system:error"
"""The topic of an error about a message whose own topic could not be read."""

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def headers_fit(headers: Mapping[str, str]) -> bool:
    """Whether the headers are within the limits of a message."""
    if len(headers) > MAX_HEADERS:
        return False
    return sum(map(len, headers)) + sum(map(len, headers.values())) <= MAX_HEADER_CHARACTERS


class Format(Protocol):
    """Reads payload bytes. Each codec has one."""

    @property
    def name(self) -> str:
        """The codec's name; payloads of equal bytes and name are equal."""

    def loads(self, data: bytes) -> Any:
        """Decode ``data``; raises ``InvalidEnvelope`` for a value that Python can't hold."""

    def check(self, data: bytes) -> None:
        """Raise the error of ``loads`` for a payload that the codec has accepted; decodes it
        only where the bytes alone do not tell."""

    def load(self, data: bytes, into: Any) -> Any:
        """Decode and validate ``data`` as a type or schema; raises ``ValidationError``."""

    def fields(self, data: bytes) -> Mapping[str, Raw]:
        """Split an object into its fields, undecoded; raises ``ValidationError``."""


class Raw:
    """A received payload: relayed byte for byte, decoded on request only.

    ``data`` are the bytes in the wire format of ``format``.
    """

    __slots__ = ("data", "format")

    def __init__(self, data: bytes, format: Format) -> None:
        self.data = data
        self.format = format

    def decode(self) -> Any:
        """Return the payload as Python objects; raises ``InvalidEnvelope``."""
        return self.format.loads(self.data)

    def check(self) -> None:
        """Raise ``InvalidEnvelope`` if ``decode`` would; costs much less for a large one."""
        self.format.check(self.data)

    @overload
    def load(self, schema_or_type: type[Schema] | Schema) -> Any: ...
    @overload
    def load(self, schema_or_type: type[D]) -> D: ...
    @overload
    def load(self, schema_or_type: Any) -> Any: ...
    def load(self, schema_or_type: Any) -> Any:
        """Decode and validate the payload as a type or schema; raises ``ValidationError``."""
        return self.format.load(self.data, schema_or_type)

    def fields(self) -> Mapping[str, Raw]:
        """Return an object's fields, undecoded; raises ``ValidationError``."""
        return self.format.fields(self.data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Raw):
            return NotImplemented
        return self.data == other.data and self.format.name == other.format.name

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"Raw({self.data[:60]!r}{'...' if len(self.data) > 60 else ''})"


class _Later:
    """Stands for a payload that is not decoded yet."""


_LATER: Final = _Later()


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The position of a message in the history of its room."""

    room: RoomId
    epoch: str
    offset: int

    if TYPE_CHECKING:  # a position kept in a file has plain strings

        def __init__(self, room: RoomId | str, epoch: str, offset: int) -> None: ...


class Envelope(Generic[T_co]):
    """A message on the wire. Treat it as immutable; ``data`` is decoded on first use.

    The attributes are plain: guarding them would cost more than decoding the message. Pass
    ``data`` or ``raw``, not both. For a handler with the annotation ``Envelope[T]``, ``data``
    is decoded and validated as ``T`` before the handler runs; with a marshmallow schema,
    ``data`` is the result of its ``load``, and ``Any`` to a type checker.
    """

    __slots__ = (
        "_data",
        "ack",
        "event",
        "headers",
        "id",
        "namespace",
        "raw",
        "ref",
        "stream",
        "topic",
        "version",
    )

    topic: str
    event: str
    id: MessageId | None
    ref: str | None
    namespace: str | None
    version: str | None
    headers: Mapping[str, str]
    ack: bool
    stream: StreamPosition | None
    _data: Any
    raw: Raw | None
    """The payload as it was received; None for a message made from Python objects."""

    def __init__(
        self,
        topic: str,
        event: str = "message",
        data: Any = None,
        id: str | None = None,
        ref: str | None = None,
        namespace: str | None = None,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
        ack: bool = False,
        stream: StreamPosition | None = None,
        raw: Raw | None = None,
    ) -> None:
        self.topic = topic
        self.event = event
        self._data = data if raw is None else _LATER
        self.id = id  # type: ignore[assignment]
        self.ref = ref
        self.namespace = namespace
        self.version = version
        self.headers = NO_HEADERS if headers is None else headers
        self.ack = ack
        self.stream = stream
        self.raw = raw

    if TYPE_CHECKING:
        data = _Payload()
    else:

        @property
        def data(self) -> T_co:
            """The payload; raises ``InvalidEnvelope`` if Python can't hold it."""
            if self._data is _LATER:
                assert self.raw is not None
                self._data = self.raw.decode()
            return self._data

    @overload
    def load(self, schema_or_type: type[Schema] | Schema) -> Any: ...
    @overload
    def load(self, schema_or_type: type[D]) -> D: ...
    @overload
    def load(self, schema_or_type: Any) -> Any: ...
    def load(self, schema_or_type: Any) -> Any:
        """Validate the payload as a type or schema; raises ``ValidationError``."""
        if self.raw is None:
            raise InvalidEnvelope("only a received message can be loaded into a type")
        return self.raw.load(schema_or_type)

    def with_data(self, data: Any) -> Envelope[Any]:
        """Return the same message with its payload decoded as ``data``."""
        copy: Envelope[Any] = Envelope(
            self.topic,
            self.event,
            None,
            self.id,
            self.ref,
            self.namespace,
            self.version,
            self.headers,
            self.ack,
            self.stream,
            self.raw,
        )
        copy._data = data
        return copy

    def with_position(self, stream: StreamPosition) -> Envelope[Any]:
        """Return the same message with its position in a room's history."""
        copy = self.with_data(self._data)
        copy.stream = stream
        return copy

    def _key(self) -> tuple[Any, ...]:
        return (
            self.topic,
            self.event,
            self.id,
            self.ref,
            self.namespace,
            self.version,
            dict(self.headers),
            self.ack,
            self.stream,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Envelope):
            return NotImplemented
        return self._key() == other._key() and bool(self.data == other.data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [f"{self.topic!r}", f"event={self.event!r}"]
        shown += [f"{n}={v!r}" for n in ("id", "ref", "version") if (v := getattr(self, n))]
        shown.append(f"raw={self.raw!r}" if self._data is _LATER else f"data={self._data!r:.80}")
        return f"Envelope({', '.join(shown)})"


class Priority(IntEnum):
    """A message of a higher priority overtakes others in the queue of a stalled connection."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send. ``data`` is any JSON value, or a ``Raw`` payload.

    Raises ``ValueError`` for a topic that is not 1 to 256 characters, and for fields of the
    wrong type or beyond the limits. The server gives it an ``id`` if it has none.
    """

    topic: str
    event: str = "message"
    data: Any = None
    id: MessageId | str | None = None
    namespace: str | None = None
    version: str | None = None
    headers: Mapping[str, str] | None = None
    priority: Priority = Priority.NORMAL

    def __post_init__(self) -> None:
        if not isinstance(self.topic, str) or not 0 < len(self.topic) <= MAX_TOPIC:
            raise ValueError(f"topic must be 1 to {MAX_TOPIC} characters, not {self.topic!r:.80}")
        if not isinstance(self.event, str) or not self.event:
            raise ValueError(f"event must be a string, not {self.event!r:.80}")
        if len(self.event) > MAX_FIELD:
            raise ValueError(f"event must be at most {MAX_FIELD} characters")
        if not (self.id is self.namespace is self.version is None):
            for what in ("id", "namespace", "version"):
                value = getattr(self, what)
                if value is not None and not isinstance(value, str):
                    raise ValueError(f"{what} must be a string, not {value!r:.80}")
                if value is not None and len(value) > MAX_FIELD:
                    raise ValueError(f"{what} must be at most {MAX_FIELD} characters")
        if self.headers is not None:
            _check_headers(self.headers)
        if self.priority.__class__ is not Priority:
            object.__setattr__(self, "priority", Priority(self.priority))


def _check_headers(headers: object) -> None:
    if not isinstance(headers, Mapping) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in headers.items()
    ):
        raise ValueError("headers must map strings to strings")
    if not headers_fit(headers):
        raise ValueError(HEADERS_TOO_MUCH)
