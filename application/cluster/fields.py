"""The fields of a packet's header: each is checked when it is read, and ``BadPacket`` is raised
for what no node sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from eyewall.application.cluster.packet import BadPacket
from eyewall.domain.envelope import Priority
from eyewall.domain.errors import Misuse
from eyewall.domain.identity import ConnId, Where

T = TypeVar("T")
Header = Mapping[str, Any]


def where_fields(where: Where) -> dict[str, Any]:
    """A filter as a header has it; raises ``Misuse`` for attributes that JSON can't compare."""
    for key, value in where.attributes.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise Misuse(f"the attribute {key} can't be compared across nodes")
    return {
        "tags": sorted(where.tags),
        "roles": sorted(where.roles),
        "user_ids": sorted(where.user_ids),
        "attributes": dict(where.attributes),
    }


def read_where(fields: Any) -> Where:
    """Read what ``where_fields`` wrote; raises ``BadPacket``."""
    try:
        return Where(**fields)
    except (TypeError, ValueError) as error:
        raise BadPacket(f"not a filter: {error}") from None


def texts(value: Any) -> list[str]:
    """Return ``value`` if it is a list of texts; raises ``BadPacket``."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadPacket("a list of texts was expected")
    return value


def texts_of(header: Header, name: str, default: tuple[str, ...] | None = None) -> list[str]:
    """Return the field, a list of texts; ``default`` if it is not there."""
    return list(default) if default is not None and name not in header else texts(header.get(name))


def conns_of(
    header: Header, name: str, default: tuple[str, ...] | None = None
) -> tuple[ConnId, ...]:
    """Return the field, a list of connection ids; ``default`` if it is not there."""
    return tuple(ConnId(conn_id) for conn_id in texts_of(header, name, default))


def text_of(header: Header, name: str) -> str:
    """Return the field, a text."""
    value = header.get(name)
    if not isinstance(value, str):
        raise BadPacket(f"{name} must be a text")
    return value


def text_or_none(header: Header, name: str) -> str | None:
    """Return the field, a text; None if it is null or not there."""
    return None if header.get(name) is None else text_of(header, name)


def number_of(header: Header, name: str) -> float:
    """Return the field, a number."""
    value = header.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadPacket(f"{name} must be a number")
    return value


def priority_of(header: Header) -> Priority:
    """Return the field ``p``, the priority of a message."""
    return member_of(Priority, header, "p")


def member_of(kind: type[T], header: Header, name: str) -> T:
    """Return the member of an enum; raises ``BadPacket`` for a value that it does not have."""
    try:
        return kind(header[name])  # type: ignore[call-arg]
    except (KeyError, ValueError, TypeError) as error:
        raise BadPacket(f"{name}: {error}") from None
