"""How samples become figures, and which samples may."""

from __future__ import annotations

from dataclasses import replace

from tests.performance.measure import Outcome, Spread, run_scenario
from tests.performance.model import Size
from tests.performance.report import judged, page, reached
from tests.performance.sample import Sample, longest, percentile
from tests.performance.scenarios import SCENARIOS

NAMED = {scenario.name: scenario for scenario in SCENARIOS}
# Those who need nothing but Tornado: what is said here must not depend on what is installed.
FANOUT = replace(NAMED["fanout"], subjects=NAMED["fanout"].subjects[:3])
CPU = FANOUT.figures[0]
TARGET = CPU.targets[0]
MS = 1_000_000
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
    return Outcome(FANOUT, list(rounds))


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


def test_a_round_in_which_the_baseline_had_no_core_has_no_ratio():
    starved = {"floor": costing(0), "hub": costing(3), "tornado": costing(20)}
    measured = {"floor": costing(2), "hub": costing(3), "tornado": costing(20)}

    assert outcome(starved, measured).ratio(CPU, "hub", "floor") == Spread(1.5, 1.5, 1.5)
    assert outcome(starved).ratio(CPU, "hub", "floor") is None
    assert reached(outcome(starved), CPU, TARGET) == ("no usable run", "unknown")
    assert f"| {CPU.title} | clients |" in page([outcome(starved)], {}, "bench")


def test_a_missed_target_is_said_to_be_missed():
    met = outcome({"floor": costing(2), "hub": costing(2.7), "tornado": costing(20)})
    missed = outcome({"floor": costing(2), "hub": costing(2.9), "tornado": costing(20)})

    assert reached(met, CPU, TARGET)[1] == "met"
    assert reached(missed, CPU, TARGET)[1] == "**missed**"


def test_the_page_warns_of_a_machine_that_was_not_quiet():
    quiet = {"floor": SAMPLE, "hub": SAMPLE, "tornado": SAMPLE}
    noisy = {name: replace(SAMPLE, server_waited=0.1) for name in quiet}

    assert "was not quiet" not in page([outcome(quiet)], {}, "bench")
    assert "was not quiet" in page([outcome(noisy)], {}, "bench")


def test_the_page_names_what_was_thrown_away():
    result = outcome({"floor": costing(2), "hub": None, "tornado": costing(20)})
    result.thrown_away["hub"] = 3

    text = page([result], {}, "bench")

    assert (
        "| **eyewall** |  | no usable run |  |  | 0, 3 thrown away | the load generator |" in text
    )


def test_a_scenario_that_failed_has_no_figures():
    """What the rounds before the failure brought is not shown."""
    result = outcome({"floor": costing(2), "hub": costing(3), "tornado": costing(20)})
    result.failure = "eyewall: connection 3 got message 5 after 3"

    text = page([result], {}, "bench")

    assert "**Failed**: eyewall: connection 3 got message 5 after 3" in text
    assert "| **failed** |" in text
    assert "| **eyewall** |" not in text
    assert "svg" not in text


# --- percentiles


def noting(*milliseconds: int, **changes: float) -> Sample:
    return replace(SAMPLE, histogram=[(ms * MS, 1) for ms in milliseconds], **changes)


def test_percentiles_come_from_merged_samples():
    """The median of the two medians would be 6; that of all samples is 2."""
    samples = [noting(1, 2, 2), noting(10, 10)]

    assert percentile(samples, 0.5) == 0.002
    assert percentile(samples, 1.0) == longest(samples) == 0.010


def test_a_percentile_over_several_runs_is_that_of_all_of_them():
    latency = NAMED["latency"]
    median = latency.figures[1]
    calm = {"hub": noting(1, 1, 1), "picows": noting(2, 2, 2), "tornado": None}
    slow = {"hub": noting(9), "picows": noting(2), "tornado": None}

    result = Outcome(latency, [calm, slow])

    assert result.spread(median, "hub") == Spread(1.0, 1.0, 9.0)
    ratio = result.ratio(median, "hub", "picows")
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.5, 4.5)


def test_a_server_that_did_not_keep_the_rate_is_named():
    fast = noting(1, operations=200, wall=2.0)
    slow = noting(1, operations=200, wall=6.0)

    result = Outcome(NAMED["latency"], [{"hub": fast, "picows": fast, "tornado": slow}])

    assert result.stopped_by("picows") == "the ordered rate"
    assert result.stopped_by("tornado") == "it reached 33 messages a second"


# --- who takes part, and what they are held to


def test_who_is_not_installed_is_left_out_by_name():
    result = outcome({"floor": costing(2), "hub": costing(2.7)})
    result.left_out["tornado"] = ["tornado"]

    text = page([result], {}, "bench")

    assert "- Tornado `write_message`: left out, there is no tornado here." in text
    assert "| Tornado `write_message` |" not in text


def test_who_lacks_a_module_does_not_run():
    stranger = replace(FANOUT.subjects[2], name="stranger", needs=("json", "no_such_module"))
    scenario = replace(FANOUT, subjects=(*FANOUT.subjects, stranger))
    said: list[str] = []

    result = run_scenario(None, scenario, Size.TINY, 0, said.append)

    assert result.left_out == {"stranger": ["no_such_module"]}
    assert [subject.name for subject in result.subjects] == ["floor", "hub", "tornado"]
    assert said == ["fanout         stranger   left out: no no_such_module here"]


def test_a_figure_may_have_several_targets():
    members = NAMED["members"]
    costs = {"floor-100": 2, "floor-5000": 3, "floor-20000": 4}
    costs |= {"hub-100": 2, "hub-5000": 4, "hub-20000": 5}
    result = Outcome(members, [{name: costing(cost) for name, cost in costs.items()}])

    first, second = judged(result, members.figures[0])

    assert first.startswith("Target: eyewall, 5,000 members, at most 1.5 × C `send()`, 5,000")
    assert first.endswith("met.")
    assert second.endswith("**missed**.")


def test_a_figure_names_how_many_clients_there_were():
    text = page([outcome({"floor": SAMPLE, "hub": SAMPLE, "tornado": SAMPLE})], {}, "bench")

    assert "| **eyewall** | 1,000 | 4.00 |" in text


def test_there_are_as_many_clients_as_descriptors_allow(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1024))
    many = NAMED["connect"]

    assert many.subjects[0].clients_at(Size.FULL, many.load) == 824
    assert many.subjects[0].clients_at(Size.TINY, many.load) == 20
