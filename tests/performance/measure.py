"""Runs a scenario: every subject in turn, several times over, and keeps what is usable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from tests.performance.processes import RunFailed, Tools, generate, serving
from tests.performance.sample import IDLE, Sample
from tests.performance.scenarios import DURATIONS, Figure, Scenario, Size, Subject

TRIES = 3
"""Runs of one subject that may be thrown away in a row before the round goes without."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several runs, and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(slots=True)
class Outcome:
    """What the rounds of one scenario brought, by subject; None where no run was usable."""

    scenario: Scenario
    clients: int
    rounds: list[dict[str, Sample | None]] = field(default_factory=list)
    thrown_away: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    """What went wrong: then there are no figures, whatever the rounds before brought."""

    def samples(self, subject: str) -> list[Sample]:
        return [sample for one in self.rounds if (sample := one[subject]) is not None]

    def spread(self, figure: Figure, subject: str) -> Spread | None:
        values = [figure.value(sample) for sample in self.samples(subject)]
        return Spread.of(values) if values else None

    def ratio(self, figure: Figure, subject: str, against: str) -> Spread | None:
        """Compare within each round, so that a slow minute of the machine hits both."""
        ratios = [
            figure.value(mine) / figure.value(theirs)
            for one in self.rounds
            if (mine := one[subject]) is not None and (theirs := one[against]) is not None
        ]
        return Spread.of(ratios) if ratios else None

    def stopped_by(self, subject: str) -> str:
        """Name what kept the run from being faster."""
        samples = self.samples(subject)
        if not samples:
            return "the load generator"
        if self.scenario.load.mode == "connect":
            return "connects, fifty at a time"
        if not self.scenario.saturates:
            return "rounds, one at a time"
        share = median(sample.server_share for sample in samples)
        return "the server's core" if share >= IDLE else f"latency: the server was {share:.0%} busy"


def run_once(tools: Tools, scenario: Scenario, subject: Subject, size: Size) -> Sample:
    """Start the subject, put the load on it, and end it."""
    load = scenario.load
    clients = load.clients_at(size)
    warm_up, seconds = DURATIONS[size]
    words = [word.format(clients=clients) for word in subject.command]
    options: dict[str, object] = {
        "clients": clients,
        "batch": load.batch,
        "size": load.payload,
        "room": load.room_size,
        "warm-up": warm_up,
        "seconds": seconds,
        "path": subject.path,
        "answer": subject.answer,
        "expect": subject.expect,
    }
    if load.topic:
        options["topic"] = load.topic
    # Connecting may take five milliseconds each where the cores are shared with others.
    deadline = 30 + 4 * (warm_up + seconds) + clients / 200
    with serving(tools, words) as server:
        return generate(tools, load.mode, server, options, deadline)


def run_scenario(
    tools: Tools, scenario: Scenario, size: Size, rounds: int, say: Callable[[str], None]
) -> Outcome:
    """Interleave the subjects: one run of each makes a round, each round begins with another."""
    outcome = Outcome(scenario, scenario.load.clients_at(size))
    for number in range(rounds):
        samples: dict[str, Sample | None] = {}
        first = number % len(scenario.subjects)
        for subject in scenario.subjects[first:] + scenario.subjects[:first]:
            try:
                samples[subject.name] = _usable_run(tools, outcome, subject, size, say)
            except RunFailed as failure:
                say(f"{scenario.name:12} {subject.name:10} {failure}")
                outcome.failure = f"{subject.title}: {str(failure).splitlines()[0]}"
                return outcome
        outcome.rounds.append(samples)
    return outcome


def _usable_run(
    tools: Tools, outcome: Outcome, subject: Subject, size: Size, say: Callable[[str], None]
) -> Sample | None:
    scenario = outcome.scenario
    for _ in range(TRIES):
        sample = run_once(tools, scenario, subject, size)
        values = ", ".join(f"{f.value(sample):.2f} {f.unit}" for f in scenario.figures)
        busy = f"server {sample.server_share:.0%}, generator {sample.generator_share:.0%}"
        # In the tiny size nothing is long enough to be judged.
        bottleneck = sample.generator_was_the_bottleneck and size is not Size.TINY
        verdict = "  thrown away: the generator was the bottleneck" if bottleneck else ""
        say(f"{scenario.name:12} {subject.name:10} {values:24} ({busy}){verdict}")
        if not bottleneck:
            return sample
        outcome.thrown_away[subject.name] = outcome.thrown_away.get(subject.name, 0) + 1
    return None
