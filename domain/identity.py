"""Ids, and the meta of a connection: its owner, tags and attributes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NewType, TypeVar, overload

ConnId = NewType("ConnId", str)
UserId = NewType("UserId", str)
RoomId = NewType("RoomId", str)
NodeId = NewType("NodeId", str)
MessageId = NewType("MessageId", str)

MAX_NAME = 200
"""Longest user, room or node id, in characters: it has to fit a topic (256) and a key."""

if TYPE_CHECKING:
    K = TypeVar("K", bound=str)
    V = TypeVar("V")
    D = TypeVar("D")

    class ById(dict[K, V]):
        """A dict by ids that takes plain strings as keys, too."""

        def __getitem__(self, key: str, /) -> V: ...
        @overload
        def get(self, key: str, default: None = None, /) -> V | None: ...
        @overload
        def get(self, key: str, default: V, /) -> V: ...
        @overload
        def get(self, key: str, default: D, /) -> V | D: ...
        def get(self, key: str, default: Any = None, /) -> Any: ...
else:
    ById = dict

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NONE: frozenset[str] = frozenset()
_LEFT_OUT: tuple[str, ...] = ()


_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u2028\u2029"  # line and paragraph separator
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides and isolates
    "\ud800-\udfff]"  # half a surrogate pair
)
"""A table of its own: ``str.isprintable`` refuses the joiners of Persian and Hindi and the
spaces of Japanese, and the emoji that are newer than its Python."""


def is_printable(text: str) -> bool:
    """Whether ``text`` can be shown within a line without breaking the line or the text around
    it. The same on every Python."""
    return text.isprintable() if text.isascii() else _UNPRINTABLE.search(text) is None


def name(value: str, what: str) -> str:
    """Return ``value``, unchanged, if it can name a user, room or node.

    Raises ``ValueError``, naming ``what``, unless it is a string of 1 to 200 characters without
    control characters, line and paragraph separators, bidirectional overrides and halves of
    surrogate pairs.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not is_printable(value):
        raise ValueError(f"{what} must be 1 to {MAX_NAME} printable characters, not {value!r:.80}")
    return value


def names(values: Iterable[str], what: str) -> frozenset[str]:
    """Return strings as a set; raises ``ValueError``, naming ``what``, for anything else."""
    if isinstance(values, str):
        raise ValueError(f"{what} must be several strings, not one: {values!r}")
    if values is _NONE or values is _LEFT_OUT:  # as nearly always
        return _NONE
    try:
        found = frozenset(values)
    except TypeError:
        raise ValueError(f"{what} must be strings, not {values!r:.80}") from None
    if not all(isinstance(value, str) for value in found):
        raise ValueError(f"{what} must be strings")
    return found or _NONE


def _mapping(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an immutable copy; the empty one is shared."""
    if values is _NOTHING:
        return values
    try:
        return MappingProxyType(dict(values)) if values else _NOTHING
    except (TypeError, ValueError):
        raise ValueError(f"attributes must be a mapping, not {values!r:.80}") from None


def _text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string, not {value!r:.80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnMeta:
    """A connection's owner and properties, as the authenticator returned them; trusted.

    ``expires_at`` (aware) is when the credentials expire: the connection is then closed with
    4401, unless the client refreshed its token before.
    """

    user_id: UserId | None
    device_id: str | None
    roles: frozenset[str]
    attributes: Mapping[str, Any]
    tags: frozenset[str]
    ip: str | None
    user_agent: str | None
    expires_at: datetime | None

    # Written out, because its arguments are wider than its fields: plain strings, and any
    # iterable of them.
    def __init__(
        self,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        roles: Iterable[str] = _LEFT_OUT,
        attributes: Mapping[str, Any] = _NOTHING,
        tags: Iterable[str] = _LEFT_OUT,
        ip: str | None = None,
        user_agent: str | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        if user_id is not None:
            name(user_id, "user_id")
        if device_id is not None:
            _text(device_id, "device_id")
        if ip is not None:
            _text(ip, "ip")
        if user_agent is not None:
            _text(user_agent, "user_agent")
        until: object = expires_at
        if until is not None and not (isinstance(until, datetime) and until.tzinfo is not None):
            raise ValueError("expires_at must be an aware datetime")
        put = object.__setattr__
        put(self, "user_id", user_id)
        put(self, "device_id", device_id)
        put(self, "roles", names(roles, "roles"))
        put(self, "attributes", _mapping(attributes))
        put(self, "tags", names(tags, "tags"))
        put(self, "ip", ip)
        put(self, "user_agent", user_agent)
        put(self, "expires_at", expires_at)

    def is_same_owner(self, other: ConnMeta) -> bool:
        """Whether a decision made for ``other`` holds for this meta: all fields are equal,
        except ``expires_at``."""
        return self is other or replace(self, expires_at=other.expires_at) == other


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Selects connections by their meta, on every node.

    A connection matches when it has all ``tags``, one of ``roles``, one of ``user_ids``, and
    every one of ``attributes`` with an equal value. An empty condition matches all.
    """

    tags: frozenset[str]
    roles: frozenset[str]
    user_ids: frozenset[str]
    attributes: Mapping[str, Any]

    def __init__(
        self,
        *,
        tags: Iterable[str] = _LEFT_OUT,
        roles: Iterable[str] = _LEFT_OUT,
        user_ids: Iterable[str] = _LEFT_OUT,
        attributes: Mapping[str, Any] = _NOTHING,
    ) -> None:
        put = object.__setattr__
        put(self, "tags", names(tags, "tags"))
        put(self, "roles", names(roles, "roles"))
        put(self, "user_ids", names(user_ids, "user_ids"))
        put(self, "attributes", _mapping(attributes))

    def __call__(self, meta: ConnMeta) -> bool:
        """Whether a connection with this meta matches."""
        return (
            self.tags <= meta.tags
            and (not self.roles or not self.roles.isdisjoint(meta.roles))
            and (not self.user_ids or meta.user_id in self.user_ids)
            and all(
                key in meta.attributes and meta.attributes[key] == value
                for key, value in self.attributes.items()
            )
        )


def node_of(conn_id: str) -> NodeId:
    """Return the node that gave a connection its id; empty for an id of another form."""
    return NodeId(conn_id.partition("@")[2])
