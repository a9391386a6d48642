"""What a benchmark is made of: a load, those who bear it, and the figures read off."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec

from tests.performance.sample import Sample


class Size(StrEnum):
    """How much of it: for the page, for a look, or only to see that it still runs."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"


DURATIONS = {Size.FULL: (0.3, 1.5), Size.QUICK: (0.2, 0.6), Size.TINY: (0.02, 0.05)}
"""Seconds to warm up, and to measure."""

OTHERS = {Size.FULL: 100_000, Size.QUICK: 10_000, Size.TINY: 20}
"""How much else is registered where a subject asks for ``{others}``."""

QUICK_CLIENTS = 2000
"""Connecting takes most of the time of a short run."""

SPARE_DESCRIPTORS = 200
"""Each side needs a descriptor per connection, a few of its own, and some more for what is
on its way from one hand to the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the load generator does; durations in seconds."""

    mode: str
    clients: int
    """As many, or as many as the limit on descriptors allows."""
    few_clients: int
    """Instead of ``clients`` in the tiny size."""
    batch: int = 1
    payload: int = 128
    room_size: int = 10
    rate: int = 100
    """Messages a second, where the load has a rate of its own."""
    topic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Somebody who bears the load.

    In the command, ``{clients}`` is how many there are, ``{others}`` how much else is
    registered, ``{certificate}`` a folder with a certificate and its key, and ``{port}``
    a free port.
    """

    name: str
    title: str
    command: tuple[str, ...]
    path: str = "/ws?user=u%06u"
    answer: str = '"ref":"'
    expect: str = ""
    setup: str
    """What was switched on, for the page."""
    own: bool = False
    """It is the hub."""
    clients: int | None = None
    """Instead of the load's."""
    generator: Mapping[str, object] = field(default_factory=dict)
    """Further options of the load generator; True for one that takes no value."""
    needs: tuple[str, ...] = ()
    """Modules without which it is left out."""
    announces: bool = True
    """It says when it is ready, on which port, and ends with its standard input."""

    def clients_at(self, size: Size, load: Load) -> int:
        wanted = self.clients or load.clients
        if size is Size.TINY:
            return min(wanted, load.few_clients)
        if size is Size.QUICK:
            wanted = min(wanted, QUICK_CLIENTS)
        return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS)

    def missing(self) -> list[str]:
        return [module for module in self.needs if find_spec(module) is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The figure of ``of`` is to be at most ``limit``, or ``limit`` times that of ``against``."""

    limit: float
    against: str | None = None
    of: str = "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number read off a sample."""

    name: str
    title: str
    unit: str
    value: Callable[[Sample], float]
    targets: tuple[Target, ...] = ()
    merged: Callable[[Sequence[Sample]], float] | None = None
    """Reads the figure off all runs at once; without it the median of the runs is taken.
    Percentiles have one: a median of percentiles is the percentile of nothing."""
    more_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    title: str
    text: str
    load: Load
    subjects: tuple[Subject, ...]
    baseline: str
    """The subject that the others' ratios are taken against."""
    figures: tuple[Figure, ...]

    def subject(self, name: str) -> Subject:
        return next(subject for subject in self.subjects if subject.name == name)
