"""How the tests are run: hypothesis, what several folders share, and what may run side by
side when xdist has several workers for them.

The tests of a file stay together and in their order, so that what a file needs is started
once. Some files do not run beside each other, either.
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

# An example that takes long is no fault where the cores are shared.
settings.register_profile(
    "unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")


collect_ignore = ["handlers"]
"""These have a run of their own, `make handlers`, with packages that no other test has."""

# --- what several folders share


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


# --- what may run side by side

LANE = ("tests/conformance/", "tests/faults/")
"""Where each file takes a core or more for itself."""

TYPED = ("tests/test_docs.py", "tests/typed/")
"""Where mypy runs: two of them at once would write into one cache."""

LONG = (
    *LANE,
    "tests/performance/test_bench_smoke.py",
    "tests/fuzz/",
    "tests/entrypoints/test_chat_browser.py",
    "tests/clients/test_javascript_hub.py",
    "tests/test_examples.py",
    *TYPED,
    "tests/entrypoints/test_cli.py",
)
"""What begins first, because nothing is left to run beside it at the end."""


def unit_of(nodeid: str) -> str:
    """Name what a test must stay together with."""
    for unit in (LANE, TYPED):
        if nodeid.startswith(unit):
            return unit[0]
    return nodeid.partition("::")[0]


def place_of(nodeid: str) -> int:
    """Tell how early a test begins: the lower, the earlier."""
    return next((n for n, name in enumerate(LONG) if nodeid.startswith(name)), len(LONG))


def pytest_configure(config: pytest.Config) -> None:
    # Workers have to give a test the same name, also where a set is part of it. They inherit
    # the seed; this process has begun with another one, and collects nothing.
    if config.getoption("numprocesses", None):
        os.environ.setdefault("PYTHONHASHSEED", str(random.randrange(1 << 32)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addressed:
        raise pytest.UsageError(f"no two workers would name it alike: {addressed[0]}")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, because many tests wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return ByUnit(config, log)
