"""How pytest runs: hypothesis's profile, fixtures that several folders share, and which tests
run side by side when xdist has several workers.

The tests of a file run in one worker and in their order, so that its fixtures are set up once.
Files that would disturb each other run in one worker, too.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import wheels
from tests.once import once

# An example may take long while other tests use the cores.
settings.register_profile(
    "unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")

collect_ignore = ["handlers"]
"""Folders without tests of this run: the handler tests have a run of their own, `make handlers`."""


# --- fixtures that several folders share


@pytest.fixture(scope="session")
def wheel(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = once("wheel", wheels.build, pytestconfig, tmp_path_factory)
    return wheels.built(source)


@pytest.fixture(scope="session")
def installed(
    wheel: Path, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the wheel's content: on ``PYTHONPATH`` it goes before the tree."""
    return once("installed", lambda to: wheels.install(wheel, to), pytestconfig, tmp_path_factory)


# --- which tests run side by side

BUSY = (
    (
        "tests/conformance/",
        "tests/faults/test_jitter.py",
        "tests/faults/test_leaks.py",
        "tests/faults/test_offline_kill.py",
    ),
    ("tests/faults/",),
)
"""Tests that keep a core busy. Those of one group run one after another; the two groups take
about the same time, so at most two such tests run at once."""

MYPY = ("tests/test_docs.py", "tests/typed/")
"""Tests that run mypy: two of them at once would write into one cache."""

FIRST = (
    *(prefix for group in BUSY for prefix in group),
    "tests/entrypoints/test_chat_browser.py",
    "tests/clients/test_javascript_hub.py",
    "tests/test_examples.py",
    "tests/entrypoints/test_cli.py",
    "tests/performance/test_bench_smoke.py",
    "tests/entrypoints/test_chat_connection.py",
    "tests/fuzz/",
    *MYPY,
    "tests/test_structure.py",
)
"""The longest files, in the order in which they start: a long file that starts late would run
alone at the end."""


def scope_of(nodeid: str) -> str:
    """Return the name of the tests that run in one worker with this one."""
    for group in (*BUSY, MYPY):
        if nodeid.startswith(group):
            return group[0]
    return nodeid.partition("::")[0]


def rank_of(nodeid: str) -> int:
    """Return the test's place in the order of starting: 0 is the first."""
    return next((n for n, prefix in enumerate(FIRST) if nodeid.startswith(prefix)), len(FIRST))


def pytest_configure(config: pytest.Config) -> None:
    # Each worker must give a test the same name, also one that is made from a set. The workers
    # inherit this seed; this process started with another one and collects no tests.
    if config.getoption("numprocesses", None):
        os.environ.setdefault("PYTHONHASHSEED", str(random.randrange(1 << 32)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addressed:
        raise pytest.UsageError(f"its name differs between workers: {addressed[0]}")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, because many tests wait for a time to pass."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False
    return ByScope(config, log)
