"""How samples become figures, and which samples may."""

from __future__ import annotations

from dataclasses import replace

from tests.performance.measure import Outcome, Spread
from tests.performance.report import page, reached
from tests.performance.sample import Sample
from tests.performance.scenarios import SCENARIOS

FANOUT = SCENARIOS[0]
CPU = FANOUT.figures[0]
SAMPLE = Sample(
    clients=1000,
    operations=100,
    deliveries=100_000,
    wall=1.0,
    server_cpu=0.4,
    server_waited=0.0,
    generator_cpu=0.5,
    generator_waited=0.0,
    resident_kib=30_000,
)


def costing(microseconds: float) -> Sample:
    return replace(SAMPLE, server_cpu=microseconds * SAMPLE.deliveries / 1e6)


def outcome(*rounds: dict[str, Sample | None]) -> Outcome:
    return Outcome(FANOUT, 1000, list(rounds))


def test_a_generator_without_a_pause_is_the_bottleneck_of_a_server_with_one():
    assert replace(SAMPLE, generator_cpu=0.97).generator_was_the_bottleneck


def test_a_generator_that_waited_for_its_core_is_one_too():
    sample = replace(SAMPLE, generator_cpu=0.5, generator_waited=0.47)

    assert sample.generator_was_the_bottleneck


def test_a_busy_generator_is_none_while_the_server_is_busy_too():
    assert not replace(SAMPLE, generator_cpu=0.97, server_cpu=0.95).generator_was_the_bottleneck


def test_ratios_are_taken_within_a_round():
    """A machine that is slow for a while is slow for both, and the ratio stays."""
    result = outcome(
        {"floor": costing(2), "hub": costing(3), "tornado": costing(20)},
        {"floor": costing(4), "hub": costing(6), "tornado": costing(40)},
        {"floor": costing(2), "hub": costing(3), "tornado": costing(20)},
    )

    ratio = result.ratio(CPU, "hub", "floor")

    assert ratio is not None
    assert [round(value, 6) for value in (ratio.median, ratio.low, ratio.high)] == [1.5, 1.5, 1.5]
    assert result.spread(CPU, "hub") == Spread(3.0, 3.0, 6.0)


def test_a_round_without_a_usable_run_is_left_out():
    result = outcome(
        {"floor": costing(2), "hub": None, "tornado": costing(20)},
        {"floor": costing(2), "hub": costing(3), "tornado": costing(20)},
    )

    assert result.ratio(CPU, "hub", "floor") == Spread(1.5, 1.5, 1.5)
    assert len(result.samples("hub")) == 1


def test_a_missed_target_is_said_to_be_missed():
    met = outcome({"floor": costing(2), "hub": costing(2.7), "tornado": costing(20)})
    missed = outcome({"floor": costing(2), "hub": costing(2.9), "tornado": costing(20)})

    assert reached(met, CPU)[1] == "met"
    assert reached(missed, CPU)[1] == "**missed**"


def test_the_page_warns_of_a_machine_that_was_not_quiet():
    quiet = {"floor": SAMPLE, "hub": SAMPLE, "tornado": SAMPLE}
    noisy = {name: replace(SAMPLE, server_waited=0.1) for name in quiet}

    assert "was not quiet" not in page([outcome(quiet)], {}, "bench")
    assert "was not quiet" in page([outcome(noisy)], {}, "bench")


def test_the_page_names_what_was_thrown_away():
    result = outcome({"floor": costing(2), "hub": None, "tornado": costing(20)})
    result.thrown_away["hub"] = 3

    text = page([result], {}, "bench")

    assert "| **eyewall** | no usable run |  |  | 0, 3 thrown away | the load generator |" in text


def test_a_scenario_that_failed_has_no_figures():
    """What the rounds before the failure brought is not shown."""
    result = outcome({"floor": costing(2), "hub": costing(3), "tornado": costing(20)})
    result.failure = "eyewall: connection 3 got message 5 after 3"

    text = page([result], {}, "bench")

    assert "**Failed**: eyewall: connection 3 got message 5 after 3" in text
    assert "| **failed** |" in text
    assert "| **eyewall** |" not in text
    assert "svg" not in text
