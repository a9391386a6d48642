"""What one run of one subject brought, and whether it may be used."""

from __future__ import annotations

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
