"""The mailbox of an offline user: its stored messages and its limits.

The limits are per user, so that one user's messages never evict another's. The oldest
message is evicted first, and each eviction is reported to the failure handlers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.envelope import Priority
from eyewall.domain.identity import UserId
from eyewall.domain.report import FailureReason

MAX_MESSAGES = 1000
"""As many as a returning client can receive within seconds, 32 at a time."""
MAX_BYTES = 8 << 20
"""As many as the queue of one connection holds."""
MAX_AGE = timedelta(days=7)
"""Older messages are of no use to a user who was away for so long."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A stored message. ``payload`` is the envelope in JSON, which asks for an ack.

    The timestamps are aware. With ``expires_at`` None only the mailbox's limits end it.
    """

    id: str
    payload: bytes
    priority: Priority
    stored_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Evicted:
    """A message that was removed undelivered. ``reason``: ``QUEUE_FULL`` if newer ones needed
    the space, ``TIMEOUT`` if it was too old."""

    user_id: UserId
    message: StoredMessage
    reason: FailureReason


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxLimits:
    """How much is stored for one user. ``max_bytes`` counts payloads; a single larger message
    is stored alone. ``max_age`` is in seconds."""

    max_messages: int = MAX_MESSAGES
    max_bytes: int = MAX_BYTES
    max_age: Seconds = MAX_AGE

    def __post_init__(self) -> None:
        count(self.max_messages, "max_messages")
        count(self.max_bytes, "max_bytes")
        object.__setattr__(self, "max_age", seconds(self.max_age, "max_age", positive=True))

    def worthless_at(self, message: StoredMessage) -> datetime:
        """Return when ``message`` expires: by its own ``expires_at`` or by ``max_age``."""
        try:
            too_old = message.stored_at + timedelta(seconds=seconds(self.max_age, "max_age"))
        except OverflowError:  # an age beyond every date
            too_old = datetime.max.replace(tzinfo=message.stored_at.tzinfo)
        return too_old if message.expires_at is None else min(too_old, message.expires_at)

    def exceeded(self, messages: int, size: int) -> bool:
        """Whether the oldest of ``messages`` with ``size`` bytes together is to be evicted."""
        return messages > 1 and (messages > self.max_messages or size > self.max_bytes)
