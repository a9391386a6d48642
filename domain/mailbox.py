"""What waits for a user who is away: a message as it is kept, and how much is kept.

The limits are each user's own, so that nobody's absence costs the others their messages;
what has to go is the oldest, and somebody is told of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.envelope import Priority
from eyewall.domain.identity import UserId
from eyewall.domain.report import FailureReason

MAX_MESSAGES = 1000
"""As many as a client can take in within seconds when it comes back, 32 at a time."""
MAX_BYTES = 8 << 20
"""As many as may be queued to one connection."""
MAX_AGE = timedelta(days=7)
"""Who was away for a week reads the news elsewhere."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that waits. ``payload`` is the envelope in JSON, which asks for an ack.

    The timestamps are aware; ``expires_at`` None: it is good as long as it is kept.
    """

    id: str
    payload: bytes
    priority: Priority
    stored_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Evicted:
    """A message that had to go before its user came: ``QUEUE_FULL`` for newer ones,
    ``TIMEOUT`` because it was too old."""

    user_id: UserId
    message: StoredMessage
    reason: FailureReason


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxLimits:
    """How much is kept for one user. ``max_bytes`` counts payloads; a single message that
    is larger is kept alone. ``max_age`` is in seconds."""

    max_messages: int = MAX_MESSAGES
    max_bytes: int = MAX_BYTES
    max_age: Seconds = MAX_AGE

    def __post_init__(self) -> None:
        count(self.max_messages, "max_messages")
        count(self.max_bytes, "max_bytes")
        object.__setattr__(self, "max_age", seconds(self.max_age, "max_age", positive=True))

    def worthless_at(self, message: StoredMessage) -> datetime:
        """Return when ``message`` goes, whether its user has come or not."""
        try:
            too_old = message.stored_at + timedelta(seconds=seconds(self.max_age, "max_age"))
        except OverflowError:  # an age beyond every date
            too_old = datetime.max.replace(tzinfo=message.stored_at.tzinfo)
        return too_old if message.expires_at is None else min(too_old, message.expires_at)

    def exceeded(self, messages: int, size: int) -> bool:
        """Return whether the oldest of so many messages, with ``size`` bytes, has to go."""
        return messages > 1 and (messages > self.max_messages or size > self.max_bytes)
