"""The connections of a node, indexed by user, device and tag.

Rules of this file:

1. The indexes always match the current ``ConnMeta`` of a connection.
2. A user, device or tag is removed with its last connection: the memory is bounded by the
   number of connections.
3. The owner of a connection comes from its meta, which only the authenticator and the
   application write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from eyewall.domain.errors import Misuse
from eyewall.domain.identity import ConnId, ConnMeta, UserId

K = TypeVar("K", bound=str)

_NOBODY = ConnMeta()
"""The meta of a connection before it is added and after it is removed: in no index."""


class _Index(Generic[K]):
    """The connections of each key, in order of arrival.

    Most users have one connection, and a dictionary for each would cost more than the rest
    of the index: a key with one connection maps to the id itself.
    """

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[K, ConnId | dict[ConnId, None]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[K]:
        return iter(self._found)

    def of(self, key: K) -> list[ConnId]:
        found = self._found.get(key)
        if found is None:
            return []
        return list(found) if isinstance(found, dict) else [found]

    def add(self, key: K, conn_id: ConnId) -> None:
        found = self._found.get(key)
        if found is None:
            self._found[key] = conn_id
        elif isinstance(found, dict):
            found[conn_id] = None
        else:
            self._found[key] = {found: None, conn_id: None}

    def discard(self, key: K, conn_id: ConnId) -> None:
        found = self._found[key]
        if not isinstance(found, dict):
            del self._found[key]
            return
        del found[conn_id]
        if len(found) == 1:
            self._found[key] = next(iter(found))

    def move(self, conn_id: ConnId, before: frozenset[K], after: frozenset[K]) -> None:
        # Only the difference is touched: under an unchanged key the order stays.
        for key in before - after:
            self.discard(key, conn_id)
        for key in after - before:
            self.add(key, conn_id)


def _one(key: K | None) -> frozenset[K]:
    return frozenset() if key is None else frozenset((key,))


class Roster:
    """Finds the connections of this node by user, device and tag."""

    __slots__ = ("_devices", "_metas", "_tags", "_users")

    def __init__(self) -> None:
        self._metas: dict[ConnId, ConnMeta] = {}
        self._users: _Index[UserId] = _Index()
        self._devices: _Index[str] = _Index()
        self._tags: _Index[str] = _Index()

    def __len__(self) -> int:
        return len(self._metas)

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._metas

    def add(self, conn_id: ConnId, meta: ConnMeta) -> None:
        """Add a connection; raises ``Misuse`` if it is here already."""
        if conn_id in self._metas:
            raise Misuse(f"connection {conn_id!r} is here already")
        self._metas[conn_id] = meta
        self._move(conn_id, _NOBODY, meta)

    def remove(self, conn_id: ConnId) -> bool:
        """Remove a connection; return whether it was here."""
        meta = self._metas.pop(conn_id, None)
        if meta is None:
            return False
        self._move(conn_id, meta, _NOBODY)
        return True

    def change(self, conn_id: ConnId, meta: ConnMeta) -> None:
        """Index a connection by its new meta; raises ``Misuse`` if it is not here.

        Under an unchanged key it keeps its place in the order; under a new key it comes last.
        """
        before = self._metas.get(conn_id)
        if before is None:
            raise Misuse(f"connection {conn_id!r} is not here")
        self._metas[conn_id] = meta
        self._move(conn_id, before, meta)

    def of_user(self, user_id: UserId) -> list[ConnId]:
        """Return the user's connections, in order of arrival."""
        return self._users.of(user_id)

    def of_device(self, device_id: str) -> list[ConnId]:
        """Return the device's connections, in order of arrival."""
        return self._devices.of(device_id)

    def of_tag(self, tag: str) -> list[ConnId]:
        """Return the connections with ``tag``, in order of arrival."""
        return self._tags.of(tag)

    def users(self) -> list[UserId]:
        """Return the users who have a connection here, in order of arrival."""
        return list(self._users)

    @property
    def user_count(self) -> int:
        """How many users have a connection here."""
        return len(self._users)

    def _move(self, conn_id: ConnId, before: ConnMeta, after: ConnMeta) -> None:
        self._users.move(conn_id, _one(before.user_id), _one(after.user_id))
        self._devices.move(conn_id, _one(before.device_id), _one(after.device_id))
        self._tags.move(conn_id, before.tags, after.tags)
