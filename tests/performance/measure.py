"""Runs a scenario: every subject in turn, several times over, and keeps what is usable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median

from tests.performance.model import DURATIONS, OTHERS, Figure, Scenario, Size, Subject
from tests.performance.processes import RunFailed, Tools, generate, serving
from tests.performance.sample import IDLE, Sample
from tests.ports import free_port

TRIES = 3
"""Runs of one subject that may be thrown away in a row before the round goes without."""

KEPT_UP = 0.97
"""The share of the ordered rate from which on it was reached."""

STOPPED_BY = {
    "fanout": "rounds, one at a time",
    "ping": "rounds, one at a time",
    "connect": "connects, fifty at a time",
    "collect": "the collections, one at a time",
    "start": "the start, once",
}
"""What keeps a load of this mode from being heavier, unless it has something to say itself."""


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
    rounds: list[dict[str, Sample | None]] = field(default_factory=list)
    thrown_away: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Subjects that could not take part, with the modules that they lack."""
    failure: str | None = None
    """What went wrong: then there are no figures, whatever the rounds before brought."""

    @property
    def subjects(self) -> list[Subject]:
        """Those who took part."""
        return [one for one in self.scenario.subjects if one.name not in self.left_out]

    def samples(self, subject: str) -> list[Sample]:
        return [sample for one in self.rounds if (sample := one.get(subject)) is not None]

    def spread(self, figure: Figure, subject: str) -> Spread | None:
        samples = self.samples(subject)
        if not samples:
            return None
        spread = Spread.of([figure.value(sample) for sample in samples])
        return replace(spread, median=figure.merged(samples)) if figure.merged else spread

    def ratio(self, figure: Figure, subject: str, against: str) -> Spread | None:
        """Compare within each round, so that a slow minute of the machine hits both.

        A round in which the figure of ``against`` is zero is left out: while it was measured,
        other processes had the server's core all the time.
        """
        pairs = [
            (mine, theirs)
            for one in self.rounds
            if (mine := one.get(subject)) is not None
            and (theirs := one.get(against)) is not None
            and figure.value(theirs) > 0
        ]
        if not pairs:
            return None
        ratios = Spread.of([figure.value(mine) / figure.value(theirs) for mine, theirs in pairs])
        if figure.merged is None:
            return ratios
        mine_all, theirs_all = ([pair[side] for pair in pairs] for side in (0, 1))
        return replace(ratios, median=figure.merged(mine_all) / figure.merged(theirs_all))

    def stopped_by(self, subject: str) -> str:
        """Name what kept the run from being faster."""
        samples = self.samples(subject)
        if not samples:
            return "the load generator"
        load = self.scenario.load
        if load.mode == "latency":
            rate = median(sample.operations / sample.wall for sample in samples)
            kept_up = rate >= KEPT_UP * load.rate
            return "the ordered rate" if kept_up else f"it reached {rate:.0f} messages a second"
        if load.mode in STOPPED_BY:
            return STOPPED_BY[load.mode]
        share = median(sample.server_share for sample in samples)
        return "the server's core" if share >= IDLE else f"latency: the server was {share:.0%} busy"


def run_once(tools: Tools, scenario: Scenario, subject: Subject, size: Size) -> Sample:
    """Start the subject, put the load on it, and end it."""
    load = scenario.load
    clients = subject.clients_at(size, load)
    warm_up, seconds = DURATIONS[size]
    port = None if subject.announces else free_port()
    named = {"certificate": tools.certificate, "others": OTHERS[size]}
    words = [word.format(clients=clients, port=port, **named) for word in subject.command]
    options: dict[str, object] = {
        "clients": clients,
        "batch": load.batch,
        "size": load.payload,
        "room": load.room_size,
        "rate": load.rate,
        "warm-up": warm_up,
        "seconds": seconds,
        "path": subject.path,
        "answer": subject.answer,
        "expect": subject.expect,
        **subject.generator,
    }
    if load.topic:
        options["topic"] = load.topic
    # Connecting may take five milliseconds each where the cores are shared with others.
    deadline = 30 + 4 * (warm_up + seconds) + clients / 200
    with serving(tools, words, port) as server:
        return generate(tools, load.mode, server, options, deadline)


def run_scenario(
    tools: Tools, scenario: Scenario, size: Size, rounds: int, say: Callable[[str], None]
) -> Outcome:
    """Interleave the subjects: one run of each makes a round, each round begins with another."""
    outcome = Outcome(scenario)
    for subject in scenario.subjects:
        if missing := subject.missing():
            outcome.left_out[subject.name] = missing
            say(f"{scenario.name:14} {subject.name:10} left out: no {', '.join(missing)} here")
    subjects = outcome.subjects
    for number in range(rounds):
        samples: dict[str, Sample | None] = {}
        first = number % len(subjects)
        for subject in subjects[first:] + subjects[:first]:
            try:
                samples[subject.name] = _usable_run(tools, outcome, subject, size, say)
            except RunFailed as failure:
                say(f"{scenario.name:14} {subject.name:10} {failure}")
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
        say(f"{scenario.name:14} {subject.name:10} {values:24} ({busy}){verdict}")
        if not bottleneck:
            return sample
        outcome.thrown_away[subject.name] = outcome.thrown_away.get(subject.name, 0) + 1
    return None
