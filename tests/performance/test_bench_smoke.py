"""Every scenario still runs, checks what arrives, and ends up on the page.

Nothing here asserts a time: in this size the figures mean nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.performance.build import NoCompiler, compiler
from tests.performance.processes import ROOT
from tests.performance.scenarios import SCENARIOS

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the bench needs Linux: epoll, /proc, affinity"
)


@pytest.fixture
def cc() -> None:
    try:
        compiler()
    except NoCompiler as missing:
        pytest.skip(str(missing))


def bench(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.performance", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_runs_and_fills_its_page(scenario, cc, tmp_path):
    done = bench("--tiny", "--only", scenario.name, "--out", str(tmp_path))

    assert done.returncode == 0, done.stderr
    page = (tmp_path / "benchmarks.md").read_text()
    for subject in scenario.subjects:
        assert f"- {subject.title}: {subject.setup}." in page
    for figure in scenario.figures:
        assert f"| {figure.title} | median" in page
    assert "no usable run" not in page
    pictures = sorted((tmp_path / "benchmarks").iterdir())
    assert len(pictures) == len(scenario.figures)
    for picture in pictures:
        assert f"(benchmarks/{picture.name})" in page
        names = [text.text for text in ET.parse(picture).findall(".//{*}text")]
        assert {subject.title.replace("`", "") for subject in scenario.subjects} <= set(names)


def test_without_a_compiler_the_bench_says_so_and_stops():
    done = bench("--tiny", "--only", "fanout", CC="no-such-compiler")

    assert done.returncode == 1
    assert "no C compiler" in done.stderr
    assert "Traceback" not in done.stderr
