"""``python -m tests.performance``: run the bench, show the figures, write the page."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.performance import report
from tests.performance.build import CannotBuild, build
from tests.performance.machine import facts
from tests.performance.measure import Outcome, run_scenario
from tests.performance.model import Scenario, Size
from tests.performance.processes import ROOT, Cores, Tools
from tests.performance.scenarios import SCENARIOS

FEWEST_FOR_THE_PAGE = 5


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.performance",
        description="Measure the hub beside a floor in C and its peers. A whole run at full "
        f"size, with at least {FEWEST_FOR_THE_PAGE} runs of each, writes docs/benchmarks.md.",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[scenario.name for scenario in SCENARIOS],
        help="only this scenario (may be repeated): " + ", ".join(s.name for s in SCENARIOS),
    )
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each subject (5)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        dest="size",
        action="store_const",
        const=Size.QUICK,
        default=Size.FULL,
        help="short runs, three of each unless --runs says otherwise: for a look",
    )
    size.add_argument(
        "--tiny",
        dest="size",
        action="store_const",
        const=Size.TINY,
        help="the least that exercises everything, once: the figures mean nothing",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the page here, whatever the size"
    )
    arguments = parser.parse_args(words)
    if arguments.runs is None:
        arguments.runs = {Size.FULL: FEWEST_FOR_THE_PAGE, Size.QUICK: 3, Size.TINY: 1}[
            arguments.size
        ]
    if arguments.runs < 1:
        parser.error("--runs is a number from 1 on")
    return arguments


def page_folder(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> Path | None:
    """Where the page goes; None if this run is not good enough for it."""
    if arguments.out is not None:
        return arguments.out
    whole = arguments.size is Size.FULL and not arguments.only
    failed = any(outcome.failure for outcome in outcomes)
    return ROOT / "docs" if whole and arguments.runs >= FEWEST_FOR_THE_PAGE and not failed else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(outcome: Outcome) -> None:
    print(f"\n{outcome.scenario.title}")
    if outcome.failure is not None:
        print(f"Failed: {outcome.failure}")
        return
    for figure in outcome.scenario.figures:
        print("\n".join(report.table(outcome, figure)))
        print("\n".join(report.judged(outcome, figure)))


def raise_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bench(scenarios: Sequence[Scenario], size: Size, runs: int) -> list[Outcome]:
    """Run the scenarios, one after the other, and show each as soon as it is done."""
    raise_descriptor_limit()
    cores = Cores.of_this_machine()
    if not cores.apart:
        say("only one core: the server and the load generator disturb each other")
    with tempfile.TemporaryDirectory() as folder:
        tools = Tools(build(Path(folder)), cores, Path(folder))
        outcomes = []
        for scenario in scenarios:
            outcomes.append(run_scenario(tools, scenario, size, runs, say))
            show(outcomes[-1])
    return outcomes


def main(words: Sequence[str]) -> int:
    arguments = parse(words)
    chosen = [s for s in SCENARIOS if not arguments.only or s.name in arguments.only]
    try:
        machine = facts()
        began = time.monotonic()
        outcomes = bench(chosen, arguments.size, arguments.runs)
        minutes = (time.monotonic() - began) / 60
        machine[f"the run of {arguments.runs} turns took"] = f"{minutes:.1f} minutes"
    except (CannotBuild, subprocess.CalledProcessError) as error:
        say(f"bench: {error}")
        return 1
    if folder := page_folder(arguments, outcomes):
        command = " ".join(["python -m tests.performance", *words])
        print(f"\nwritten: {report.write(folder, outcomes, machine, command)}")
    else:
        print("\nnothing written: the page wants all scenarios at full size, five runs of each")
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
