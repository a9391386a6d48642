"""What one run of one subject brought, and whether it may be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUSY = 0.95
"""A process that ran, or wanted to, for this share of the time could not have done more."""

IDLE = 0.90
"""A server below this share had time left."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the load generator. Times are seconds, of the measured part only.

    ``waited`` is the time in which a process was ready to run while another one had its
    core: it is nobody's CPU time, but a machine on which much of it is seen was not quiet.
    """

    clients: int
    operations: int
    deliveries: int
    wall: float
    server_cpu: float
    server_waited: float
    generator_cpu: float
    generator_waited: float
    resident_kib: int
    opening: float = 0.0
    """How long it took to connect everybody, where that was timed."""
    histogram: Sequence[tuple[int, int]] = ()
    """What took how long: ends of buckets in nanoseconds, and how many there were in each."""

    @property
    def server_share(self) -> float:
        return (self.server_cpu + self.server_waited) / self.wall

    @property
    def generator_share(self) -> float:
        return (self.generator_cpu + self.generator_waited) / self.wall

    @property
    def disturbed(self) -> float:
        """The share of the time in which the server's core was taken by others."""
        return self.server_waited / self.wall

    @property
    def generator_was_the_bottleneck(self) -> bool:
        """The run says more about the load generator than about the server."""
        return self.generator_share >= BUSY and self.server_share < IDLE


def percentile(samples: Sequence[Sample], share: float) -> float:
    """Return the time in seconds within which ``share`` of all that was noted happened.

    It is read off all samples together: percentiles can't be averaged.
    """
    counts: dict[int, int] = {}
    for sample in samples:
        for end, count in sample.histogram:
            counts[end] = counts.get(end, 0) + count
    rest = share * sum(counts.values())
    for end in sorted(counts):
        rest -= counts[end]
        if rest <= 0:
            return end / 1e9
    raise ValueError("nothing was noted")


def longest(samples: Sequence[Sample]) -> float:
    """Return the longest time in seconds that was noted."""
    return percentile(samples, 1.0)
