"""The state machine of one message to one connection that has to acknowledge it.

Rules of this file:

1. Nothing here waits, sends or reads a clock: ``now`` is an argument.
2. Every change of state is a row of ``NEXT``. A missing row means that the event can't happen
   in that state: causing it is a bug of the server, not of the client.
3. Where a row leads to another try (``RETRIES``) and no try or no time is left, the message
   fails instead: with the reason of the last failure, or ``TIMEOUT``.
4. A message settles once, and the receiver's answer is final: a late ack counts, and a nack
   is never retried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from eyewall.domain.duration import seconds
from eyewall.domain.errors import Misuse
from eyewall.domain.report import FailureReason, SendOptions


class State(Enum):
    """The state of a message to one connection."""

    READY = auto()
    """To be sent now, as try number ``attempt``."""
    AWAITING_ACK = auto()
    BACKING_OFF = auto()
    """Between two tries."""
    DELIVERED = auto()
    FAILED = auto()


class Event(Enum):
    """What happened to it."""

    WRITTEN = auto()
    """The connection took it."""
    REFUSED = auto()
    """The connection's queue did not take it."""
    ACKED = auto()
    NACKED = auto()
    EXPIRED = auto()
    """The ack did not come in time."""
    DUE = auto()
    """The back-off is over."""
    LOST = auto()
    """The connection has closed."""


NEXT: Final = {
    (State.READY, Event.WRITTEN): State.AWAITING_ACK,
    (State.READY, Event.REFUSED): State.BACKING_OFF,
    (State.READY, Event.LOST): State.FAILED,
    (State.AWAITING_ACK, Event.ACKED): State.DELIVERED,
    (State.AWAITING_ACK, Event.NACKED): State.FAILED,
    (State.AWAITING_ACK, Event.EXPIRED): State.BACKING_OFF,
    (State.AWAITING_ACK, Event.LOST): State.FAILED,
    (State.BACKING_OFF, Event.DUE): State.READY,
    (State.BACKING_OFF, Event.ACKED): State.DELIVERED,  # late, but it is an ack
    (State.BACKING_OFF, Event.NACKED): State.FAILED,  # late, but it is an answer
    (State.BACKING_OFF, Event.LOST): State.FAILED,
}

RETRIES: Final = frozenset(
    {
        (State.READY, Event.REFUSED),
        (State.AWAITING_ACK, Event.EXPIRED),
        (State.BACKING_OFF, Event.DUE),  # a pause cut short by the deadline
    }
)
"""The rows that lead to another try: if none is left, to ``FAILED``."""

WHY: Final = {
    Event.REFUSED: FailureReason.QUEUE_FULL,
    Event.NACKED: FailureReason.NACKED,
    Event.EXPIRED: FailureReason.ACK_TIMEOUT,
    Event.LOST: FailureReason.CONN_CLOSED,
}
"""The failure reason of each event that can end in failure."""

FINAL: Final = frozenset({State.DELIVERED, State.FAILED})

_DOUBLINGS = 62
"""Most doublings of a pause: more would exceed every deadline, and overflow."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often one message is tried. Times in seconds.

    ``ack_timeout`` is for one try; ``retry_max`` counts the tries after the first,
    ``retry_backoff`` is the pause before the first of them and doubles; at
    ``deadline``, on the monotonic clock, the message is worthless (None: never).
    """

    ack_timeout: float
    retry_max: int
    retry_backoff: float
    deadline: float | None

    @classmethod
    def of(cls, options: SendOptions, now: float) -> Plan:
        """Return the plan of ``options``; their ``ttl`` counts from ``now``."""
        ttl = options.ttl
        return cls(
            ack_timeout=seconds(options.ack_timeout, "ack_timeout"),
            retry_max=options.retry_max,
            retry_backoff=seconds(options.retry_backoff, "retry_backoff"),
            deadline=None if ttl is None else now + seconds(ttl, "ttl"),
        )

    def patience(self, now: float) -> float:
        """Return when the ack of a message written at ``now`` is overdue."""
        return self._bounded(now + self.ack_timeout)

    def retry_at(self, now: float, attempt: int) -> float:
        """Return when to retry after ``attempt`` failed at ``now``."""
        pause = math.ldexp(self.retry_backoff, min(attempt - 1, _DOUBLINGS))
        return self._bounded(now + pause)

    def allows(self, now: float, attempt: int) -> bool:
        """Return whether there is a try left after ``attempt``, and time for it."""
        return attempt <= self.retry_max and not self.is_over(now)

    def is_over(self, now: float) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline

    def longest(self) -> float:
        """Return the seconds of all tries and the pauses between them: without a deadline the
        message has settled by then."""
        pauses = sum(
            math.ldexp(self.retry_backoff, min(n, _DOUBLINGS)) for n in range(self.retry_max)
        )
        return self.ack_timeout * (self.retry_max + 1) + pauses

    def _bounded(self, when: float) -> float:
        return when if self.deadline is None else min(when, self.deadline)


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Wait for the receiver, at the latest until ``when`` (monotonic seconds).

    Then report ``EXPIRED`` in the state ``AWAITING_ACK``, ``DUE`` in ``BACKING_OFF``.
    """

    when: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send it, under the same id, as try number ``attempt``; then report ``WRITTEN``,
    ``REFUSED`` or ``LOST``."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The message has settled. ``reason`` says why it was not delivered."""

    delivered: bool
    reason: FailureReason | None = None


Action = WaitUntil | Send | Settle


class Delivery:
    """Decides the next action for one message to one connection.

    It begins in ``READY``: the caller sends the message as the first try and reports
    ``WRITTEN`` or ``REFUSED``.
    """

    __slots__ = ("_went_wrong", "attempt", "plan", "state")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.state = State.READY
        self.attempt = 1
        """The number of the current or last try."""
        self._went_wrong: FailureReason | None = None

    @property
    def is_settled(self) -> bool:
        """Whether it is in a final state: no event may follow."""
        return self.state in FINAL

    def on(self, event: Event, now: float) -> Action:
        """Apply an event at ``now``; return the next action.

        Raises ``Misuse``, and changes nothing, if the event can't happen in this state.
        """
        row = self.state, event
        try:
            after = NEXT[row]
        except KeyError:
            raise Misuse(f"{event.name} while {self.state.name}") from None
        self._went_wrong = WHY.get(event, self._went_wrong)
        if row in RETRIES and not self.plan.allows(now, self.attempt):
            after = State.FAILED
            if self.plan.is_over(now):
                self._went_wrong = FailureReason.TIMEOUT
        self.state = after
        return self._act(now)

    def _act(self, now: float) -> Action:
        match self.state:
            case State.AWAITING_ACK:
                return WaitUntil(self.plan.patience(now))
            case State.BACKING_OFF:
                return WaitUntil(self.plan.retry_at(now, self.attempt))
            case State.READY:
                self.attempt += 1
                return Send(self.attempt)
            case State.DELIVERED:
                return Settle(delivered=True)
            case State.FAILED:
                return Settle(delivered=False, reason=self._went_wrong)
