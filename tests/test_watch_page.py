"""The tables on what to watch and on lost messages name what the code counts, logs and reports."""

import re
from pathlib import Path

import pytest

from eyewall import FailureReason
from eyewall.adapters.observe.prometheus import PrometheusMetrics
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.report import Incident

ROOT = Path(__file__).parents[1]
PROSE = re.compile(r"`([^`]+)`")


def rows_of(page, heading, first):
    """The rows of the table below ``heading`` whose first column is called ``first``."""
    section = (ROOT / "docs" / page).read_text().split(f"# {heading}\n", 1)[1]
    lines = section.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def counted():
    """The metrics after one of each event: name, and labels."""
    metrics = PrometheusMetrics()
    metrics.connected()
    metrics.disconnected(DisconnectReason.NORMAL)
    for tell in (metrics.received, metrics.failed, metrics.refused):
        tell("x")
    for tell in (metrics.dropped, metrics.incident, metrics.handled, metrics.acked):
        tell("x", 1)
    found = {}
    for family in metrics.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for each in family.samples for label in each.labels} - {"le"}
    return found


def test_the_page_has_every_metric_with_its_labels():
    listed = {
        PROSE.findall(name)[0]: set(PROSE.findall(labels))
        for name, labels, _ in rows_of("running.md", "What to watch", "metric")
    }

    assert listed == counted()


INCIDENTS = rows_of("running.md", "What to watch", "incident")
PLACES = rows_of("way-of-a-message.md", "Why a message did not arrive", "where")


def test_the_page_has_every_incident():
    names = [PROSE.findall(name)[0] for name, _, _ in INCIDENTS]

    assert names == [incident.value for incident in Incident]


def code():
    folders = ("application", "adapters", "entrypoints")
    return "".join(path.read_text() for top in folders for path in (ROOT / top).rglob("*.py"))


def test_each_log_line_is_one_of_the_code():
    cells = [cell for _, cell, _ in INCIDENTS] + [row[4] for row in PLACES]
    named = {name for cell in cells for name in PROSE.findall(cell)}
    logged = set(re.findall(r"\.(?:warning|error|info)\(\s*\"(\w+)\"", code()))

    assert named
    assert named <= logged


@pytest.mark.parametrize("where", [row[0] for row in PLACES])
def test_each_place_is_one_of_the_code(where):
    module, function = PROSE.findall(where)

    assert re.search(rf"def {function}\(", (ROOT / f"{module}.py").read_text())


def test_each_reason_is_one_of_the_code_and_each_counter_counts():
    reasons = {name for row in PLACES for name in PROSE.findall(row[2])}
    counters = {name for row in PLACES for name in PROSE.findall(row[3])}

    assert reasons <= {reason.name for reason in FailureReason}
    assert counters <= {incident.value for incident in Incident} | set(counted())
    assert {row[3].split(",")[0] for row in PLACES if "`" not in row[3]} == {
        "none",
        "dropped",
        "drops",
    }
