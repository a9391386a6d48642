"""Whom a message is for, asked again at the moment when it is written.

Between the look for a user's connections and the writing a connection may have become
another user's, have left the room, or not have been let in; between two tries too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from eyewall.application.cluster.protocol import Recipients
from eyewall.application.connections.registry import Connection
from eyewall.application.ports.conformance import is_async
from eyewall.application.ports.logging import shown
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
            return conn.is_admitted and conn.meta.user_id == self.user
        if self.room is not None:
            return conn.is_admitted and self.room in conn.roles and self.room not in conn.held
        return self.fits is None or (conn.is_admitted and self.fits(conn.meta))

    def named(self) -> Recipients:
        """What another node has to know of it; a callable is known to this node only."""
        where = self.fits if isinstance(self.fits, Where) else None
        return Recipients(self.user, self.room, where)

    @classmethod
    def of(cls, named: Recipients) -> RecipientFilter:
        """The filter that another node has named."""
        if named.user is not None:
            return cls(user=named.user)
        return cls(room=named.room, fits=named.where)


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
