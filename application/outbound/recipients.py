"""The recipients of a message, checked again at the moment of writing.

Between the lookup of the connections and the writing, and between two tries, a connection may
have changed its user, have left the room, or have been refused.
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
    """The connections of a user, of a room's members, or those that a filter accepts.

    Without any of them: every connection, whatever its user.
    """

    user: UserId | None = None
    room: RoomId | None = None
    fits: Filter | Where | None = None

    def means(self, conn: Connection) -> bool:
        """Whether the connection, as it is now, is a recipient."""
        if self.user is not None:
            return conn.is_admitted and conn.meta.user_id == self.user
        if self.room is not None:
            return conn.is_admitted and self.room in conn.roles and self.room not in conn.held
        return self.fits is None or (conn.is_admitted and self.fits(conn.meta))

    def named(self) -> Recipients:
        """Return the form for other nodes; a callable stays on this node."""
        where = self.fits if isinstance(self.fits, Where) else None
        return Recipients(self.user, self.room, where)

    @classmethod
    def of(cls, named: Recipients) -> RecipientFilter:
        """Return the filter that another node has sent."""
        if named.user is not None:
            return cls(user=named.user)
        return cls(room=named.room, fits=named.where)


ANY_RECIPIENT = RecipientFilter()


def checked(fits: Filter | Where) -> Filter | Where:
    """Return a filter whose errors are all of type ``Exception``: a timer may call it.

    Raises ``ValueError`` if ``fits`` is no filter. An ``async`` filter would accept all, since
    a coroutine is true: it is refused here, or at its first call if only its result shows it.
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
