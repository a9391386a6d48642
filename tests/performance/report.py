"""Turns outcomes into a page: tables, charts, and what one has to know to judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from tests.performance.chart import Bar, bar_chart, number
from tests.performance.measure import Outcome, Spread
from tests.performance.model import Figure, Scenario, Subject, Target

INTRODUCTION = """\
CPU time, user and system, of the server process alone, which is pinned to one core while
the load generator has another. All subjects of a scenario take turns in one run, each time
in a new process. Figures are medians with the least and the most, and ratios are taken
within each turn. Percentiles are taken from the samples of all turns together. The ratios
count: absolute times belong to the machine below.

The clients check the messages: each has a number, and a gap, a duplicate or a wrong order
on any connection ends the run without a figure. The load generator is an `epoll` loop in C;
a run that it slowed down is discarded. The peers run as their own documentation recommends,
with its fastest options, which are listed below each table.
"""


def _range(spread: Spread) -> str:
    return f"{number(spread.low)}–{number(spread.high)}"


def _times(ratio: Spread) -> str:
    return f"{number(ratio.median)} × ({_range(ratio)})"


def wanted(scenario: Scenario, figure: Figure, target: Target) -> str:
    if target.against is None:
        return f"at most {target.limit:g} {figure.unit}"
    return f"at most {target.limit:g} × {scenario.subject(target.against).title}"


def about(scenario: Scenario, target: Target) -> str:
    """Name whose figure it is, where the hub takes part in several ways."""
    return "" if target.of == "hub" else f"{scenario.subject(target.of).title}, "


def reached(outcome: Outcome, figure: Figure, target: Target) -> tuple[str, str]:
    """Return the hub's figure in the terms of its target, and whether that was met."""
    if outcome.failure is not None:
        return outcome.failure, "**failed**"
    if target.against is None:
        spread = outcome.spread(figure, target.of)
        text = spread and f"{number(spread.median)} {figure.unit} ({_range(spread)})"
    else:
        spread = outcome.ratio(figure, target.of, target.against)
        text = spread and _times(spread)
    if spread is None or text is None:
        return "no usable run", "unknown"
    return text, "met" if spread.median <= target.limit else "**missed**"


def judged(outcome: Outcome, figure: Figure) -> list[str]:
    """Return a sentence for each target."""
    sentences = []
    for target in figure.targets:
        text, verdict = reached(outcome, figure, target)
        whose = about(outcome.scenario, target)
        what = wanted(outcome.scenario, figure, target)
        sentences.append(f"Target: {whose}{what}. Measured: {text}, {verdict}.")
    return sentences


def _row(outcome: Outcome, figure: Figure, subject: Subject) -> str:
    spread = outcome.spread(figure, subject.name)
    runs = str(len(outcome.samples(subject.name)))
    if thrown := outcome.thrown_away.get(subject.name):
        runs += f", {thrown} thrown away"
    cells = [f"**{subject.title}**" if subject.own else subject.title]
    cells.append(f"{outcome.samples(subject.name)[0].clients:,}" if spread else "")
    if spread is None:
        cells += ["no usable run", "", ""]
    else:
        ratio = outcome.ratio(figure, subject.name, outcome.scenario.baseline)
        is_baseline = subject.name == outcome.scenario.baseline
        cells += [number(spread.median), _range(spread)]
        cells.append("1" if is_baseline else _times(ratio) if ratio else "")
    return f"| {' | '.join([*cells, runs, outcome.stopped_by(subject.name)])} |"


def table(outcome: Outcome, figure: Figure) -> list[str]:
    baseline = outcome.scenario.subject(outcome.scenario.baseline)
    middle = "all runs" if figure.merged else "median"
    return [
        (
            f"| {figure.title} | clients | {middle}, {figure.unit} | min–max "
            f"| × {baseline.title} | runs | what stopped it |"
        ),
        "|---|---|---|---|---|---|---|",
        *(_row(outcome, figure, subject) for subject in outcome.subjects),
    ]


def chart(outcome: Outcome, figure: Figure) -> str | None:
    bars = []
    for subject in outcome.subjects:
        spread = outcome.spread(figure, subject.name)
        if spread is None:
            continue
        ratio = outcome.ratio(figure, subject.name, outcome.scenario.baseline)
        is_baseline = subject.name == outcome.scenario.baseline
        note = "" if is_baseline or ratio is None else f"{number(ratio.median)} ×"
        name = subject.title.replace("`", "")
        bars.append(Bar(name, spread.median, spread.low, spread.high, note, subject.own))
    if not bars:
        return None
    better = "more" if figure.more_is_better else "less"
    subtitle = f"{figure.title}, {figure.unit}: {better} is better"
    return bar_chart(outcome.scenario.title, subtitle, bars)


def _picture_name(outcome: Outcome, figure: Figure) -> str:
    several = len(outcome.scenario.figures) > 1
    return f"{outcome.scenario.name}{'-' + figure.name if several else ''}.svg"


def disturbance(outcomes: Sequence[Outcome]) -> float:
    """The share of the time in which other processes had the server's core."""
    shares = [
        sample.disturbed
        for outcome in outcomes
        for one in outcome.rounds
        for sample in one.values()
        if sample is not None
    ]
    return median(shares) if shares else 0.0


def _section(outcome: Outcome) -> list[str]:
    scenario = outcome.scenario
    lines = [
        f"## {scenario.title}",
        "",
        scenario.text,
        "",
        f"    python -m tests.performance --only {scenario.name}",
        "",
    ]
    if outcome.failure is not None:
        lines += [f"**Failed**: {outcome.failure}", ""]
    for figure in scenario.figures if outcome.failure is None else ():
        lines += [
            f"![{figure.title}](benchmarks/{_picture_name(outcome, figure)})",
            "",
            *table(outcome, figure),
            "",
            *(line for sentence in judged(outcome, figure) for line in (sentence, "")),
        ]
    lines += ["Switched on:", ""]
    lines += [
        f"- {subject.title}: {_taking_part(outcome, subject)}." for subject in scenario.subjects
    ]
    return [*lines, ""]


def _taking_part(outcome: Outcome, subject: Subject) -> str:
    missing = outcome.left_out.get(subject.name)
    return f"left out, there is no {', '.join(missing)} here" if missing else subject.setup


def page(outcomes: Sequence[Outcome], machine: Mapping[str, str], command: str) -> str:
    share = disturbance(outcomes)
    summary = ["| what | target | measured | |", "|---|---|---|---|"]
    for outcome in outcomes:
        summary += _summary(outcome)
    facts = [f"| {name} | {value} |" for name, value in machine.items()]
    facts.append(f"| the server's core was taken by others for | {share:.1%} of the time |")
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{command}`, which writes this page and its pictures anew.",
        "",
        INTRODUCTION,
        "| measured on | |",
        "|---|---|",
        *facts,
        "",
        *(_noisy() if share > 0.02 else []),
        *summary,
        "",
    ]
    for outcome in outcomes:
        lines += _section(outcome)
    return "\n".join(lines).rstrip() + "\n"


def _summary(outcome: Outcome) -> list[str]:
    rows = []
    for figure in outcome.scenario.figures:
        for target in figure.targets:
            text, verdict = reached(outcome, figure, target)
            what = f"{outcome.scenario.title}: {about(outcome.scenario, target)}{figure.title}"
            target_text = wanted(outcome.scenario, figure, target)
            rows.append(f"| {what} | {target_text} | {text} | {verdict} |")
    return rows


def _noisy() -> list[str]:
    return [
        (
            "**The machine was not quiet: other processes ran on the same core, and their "
            "traces in its caches are part of every figure here.**"
        ),
        "",
    ]


def write(
    folder: Path, outcomes: Sequence[Outcome], machine: Mapping[str, str], command: str
) -> Path:
    """Write ``benchmarks.md`` and ``benchmarks/*.svg`` into ``folder``."""
    pictures = folder / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        for figure in outcome.scenario.figures:
            picture = chart(outcome, figure) if outcome.failure is None else None
            if picture is not None:
                (pictures / _picture_name(outcome, figure)).write_text(picture)
    path = folder / "benchmarks.md"
    path.write_text(page(outcomes, machine, command))
    return path
