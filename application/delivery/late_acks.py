"""Answers that come when nobody waits for them any more.

A client that acks after the time-out has the message all the same: what was stored for it
need not be sent again. An answer counts only from the connection that the message went to.
"""

from __future__ import annotations

from collections.abc import Iterable

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import OfflineStore
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, UserId

MEMORY = 10_000
"""Time-outs that are remembered: about 2 MiB. Who answers later than that gets the message
once more, under its id."""


_Key = tuple[ConnId, str]


class LateAcks:
    """Takes what was answered late out of the offline store."""

    def __init__(self, store: OfflineStore, logger: Logger) -> None:
        self._store = store
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._silent: dict[_Key, tuple[UserId, bool]] = {}
        """Whose the message was, and whether an answer has come meanwhile, by connection
        and message. The connection may be another user's when it answers."""

    def __len__(self) -> int:
        return len(self._silent)

    def silent(self, user_id: UserId, conn_id: ConnId, message_id: str) -> None:
        """The connection, the user's then, did not answer in time."""
        self._silent.pop((conn_id, message_id), None)
        self._silent[conn_id, message_id] = user_id, False
        if len(self._silent) > MEMORY:
            del self._silent[next(iter(self._silent))]

    def answered(self, conn_id: ConnId, message_id: str) -> bool:
        """An answer that nobody waits for; False if it is none to a message of ours."""
        user_id, was_answered = self._silent.get((conn_id, message_id), (None, True))
        if was_answered or user_id is None:
            return False
        # It stays known: the message may be about to be stored.
        self._silent[conn_id, message_id] = user_id, True
        self._tasks.spawn(self._remove(user_id, message_id))
        return True

    async def stored(self, user_id: UserId, message_id: str, conn_ids: Iterable[str]) -> None:
        """The message was stored: if somebody has answered since, that was too late to
        hinder it."""
        late = (user_id, True)
        if any(self._silent.get((ConnId(conn_id), message_id)) == late for conn_id in conn_ids):
            await self._remove(user_id, message_id)

    async def _remove(self, user_id: UserId, message_id: str) -> None:
        try:
            await self._store.remove(user_id, message_id)
        except Unavailable as error:
            # It will be delivered once more, under its id.
            self._logger.warning("answered_message_kept", id=message_id, error=told(error))

    async def close(self) -> None:
        """See through what is under way: it keeps a message from being sent again."""
        await self._tasks.settled()
