"""Whom a message is for, asked again at the moment when it is written.

Between the look for a user's connections and the writing a connection may have become
another user's, have left the room, or not have been let in; between two tries too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eyewall.application.cluster.packet import BadPacket
from eyewall.application.connections.registry import Connection
from eyewall.application.ports.conformance import is_async
from eyewall.application.ports.logging import shown
from eyewall.domain.errors import Misuse
from eyewall.domain.identity import ConnMeta, RoomId, UserId, Where

Filter = Callable[[ConnMeta], bool]


_NOT_ASYNC = "a filter is asked of each connection at once: it can't be async"


@dataclass(frozen=True, slots=True)
class RecipientFilter:
    """A user, the members of a room, or whoever fits; nothing named: the connections as
    such, whoever has them."""

    user: UserId | None = None
    room: RoomId | None = None
    fits: Filter | Where | None = None

    def means(self, conn: Connection) -> bool:
        """Whether the connection is one of those, as it is now."""
        if self.user is not None:
            return conn.is_in and conn.meta.user_id == self.user
        if self.room is not None:
            return conn.is_in and self.room in conn.roles and self.room not in conn.held
        return self.fits is None or (conn.is_in and self.fits(conn.meta))

    def header(self) -> dict[str, Any]:
        """What another node has to know of it."""
        if self.user is not None:
            return {"u": self.user}
        if self.room is not None:
            return {"r": self.room}
        return {"where": where_out(self.fits)} if isinstance(self.fits, Where) else {}


ANY_RECIPIENT = RecipientFilter()


def checked(fits: Filter | Where) -> Filter | Where:
    """Return a filter that can be asked wherever it has to be, by a timer too: what the
    application's raises is an ``Exception``.

    Raises ``ValueError`` for what is none. An ``async`` one would fit everybody, since a
    coroutine is true; where only its answer shows that, the asking raises ``ValueError``.
    """
    if isinstance(fits, Where):
        return fits
    if not callable(fits):
        raise ValueError(f"a filter is a callable on ConnMeta or a Where, not {fits!r:.80}")
    if is_async(fits):
        raise ValueError(_NOT_ASYNC)

    def ask(meta: ConnMeta) -> bool:
        try:
            said: object = fits(meta)
            if said is True or said is False:
                return said
            if not inspect.isawaitable(said):
                return bool(said)
        except Exception:
            raise
        except BaseException as error:
            raise RuntimeError(f"the filter raised {shown(error)}") from error
        if inspect.iscoroutine(said):
            said.close()
        raise ValueError(_NOT_ASYNC)

    return ask


def whom_in(header: Mapping[str, Any]) -> RecipientFilter:
    """Read what ``RecipientFilter.header`` wrote; raises ``BadPacket``."""
    user, room = header.get("u"), header.get("r")
    if not isinstance(user, str | None) or not isinstance(room, str | None):
        raise BadPacket("a message for nobody")
    if user is not None:
        return RecipientFilter(user=UserId(user))
    if room is not None:
        return RecipientFilter(room=RoomId(room))
    return RecipientFilter(fits=where_in(header["where"])) if "where" in header else ANY_RECIPIENT


def where_out(where: Where) -> dict[str, Any]:
    """A filter as a packet has it; raises ``Misuse`` for what can't travel."""
    for key, value in where.attributes.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise Misuse(f"the attribute {key} can't be compared across nodes")
    return {
        "tags": sorted(where.tags),
        "roles": sorted(where.roles),
        "user_ids": sorted(where.user_ids),
        "attributes": dict(where.attributes),
    }


def where_in(fields: Any) -> Where:
    """Read what ``where_out`` wrote; raises ``BadPacket``."""
    try:
        return Where(**fields)
    except (TypeError, ValueError) as error:
        raise BadPacket(f"not a filter: {error}") from None
