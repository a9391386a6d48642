"""The result of a message that was to be acknowledged: how many acks came, and whose.

These are the values that the API hands out; ``report.ack_result`` makes them from delivery
reports. The error ``AckTimeout`` has one, so this module imports neither reports nor errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from eyewall.domain.identity import ConnId, UserId

MOST_NAMED: Final = 1000
"""Most connections that a result names in each of its lists. Its numbers count all."""


@dataclass(frozen=True, slots=True)
class Acker:
    """A connection that was asked for an ack, and its user.

    ``user_id`` is None for an anonymous connection, and where no node has named its user;
    ``conn_id`` is None for a user who had no connection.
    """

    user_id: UserId | None
    conn_id: ConnId | None

    if TYPE_CHECKING:  # a test that builds one has plain strings

        def __init__(self, user_id: UserId | str | None, conn_id: ConnId | str | None) -> None: ...


@dataclass(frozen=True, slots=True)
class AckResult:
    """How many acks came, and from which connections.

    ``expected`` connections were asked for an ack; ``received`` of them acked, and ``nacked``
    refused. ``timed_out``: at least one did not answer in time.

    ``acked``, ``refused`` and ``silent`` name them, in no particular order: each expected
    connection is in one of the three. ``silent`` are all without an answer: too slow, closed
    meanwhile, not reached, or a user without a connection, who counts as one. Each of these,
    and ``errors``, has at most 1,000 entries; the numbers count all.
    """

    expected: int
    received: int
    nacked: int
    timed_out: bool
    errors: list[str] = field(default_factory=list)
    acked: tuple[Acker, ...] = ()
    refused: tuple[Acker, ...] = ()
    silent: tuple[Acker, ...] = ()


def named(ackers: Iterable[Acker]) -> tuple[Acker, ...]:
    """Return the first ``MOST_NAMED`` of ``ackers``."""
    return tuple(islice(ackers, MOST_NAMED))
