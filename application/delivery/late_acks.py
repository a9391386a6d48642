"""Late acks: answers that arrive after the time-out.

A client that acks late has the message, so the stored copy need not be sent again. An answer
counts only from the connection to which the message was sent.
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
"""Time-outs that are remembered: about 2 MiB. After an even later ack the message is sent
again, under the same id."""


_Key = tuple[ConnId, str]


class LateAcks:
    """Removes messages with a late answer from the offline store."""

    def __init__(self, store: OfflineStore, logger: Logger) -> None:
        self._store = store
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._silent: dict[_Key, tuple[UserId, bool]] = {}
        """The user of the message, and whether an answer has arrived, by connection and message.
        The connection may have another user when it answers."""

    def __len__(self) -> int:
        return len(self._silent)

    def timed_out(self, user_id: UserId, conn_id: ConnId, message_id: str) -> None:
        """Remember a message to the user that the connection did not answer in time."""
        self._silent.pop((conn_id, message_id), None)
        self._silent[conn_id, message_id] = user_id, False
        if len(self._silent) > MEMORY:
            del self._silent[next(iter(self._silent))]

    def answered(self, conn_id: ConnId, message_id: str) -> bool:
        """Apply a late answer: the message is removed from the store. False if the message is
        not remembered, or was answered before."""
        user_id, was_answered = self._silent.get((conn_id, message_id), (None, True))
        if was_answered or user_id is None:
            return False
        # It stays in the table: the message may be about to be stored.
        self._silent[conn_id, message_id] = user_id, True
        self._tasks.spawn(self._remove(user_id, message_id))
        return True

    async def stored(self, user_id: UserId, message_id: str, conn_ids: Iterable[str]) -> None:
        """Remove a message that was just stored, if one of ``conn_ids`` answered it meanwhile."""
        late = (user_id, True)
        if any(self._silent.get((ConnId(conn_id), message_id)) == late for conn_id in conn_ids):
            await self._remove(user_id, message_id)

    async def _remove(self, user_id: UserId, message_id: str) -> None:
        try:
            await self._store.remove(user_id, message_id)
        except Unavailable as error:
            # It will be sent again, under the same id.
            self._logger.warning("answered_message_kept", id=message_id, error=told(error))

    async def close(self) -> None:
        """Complete the pending removals, so that these messages are not sent again."""
        await self._tasks.settled()
