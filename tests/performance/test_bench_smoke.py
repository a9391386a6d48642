"""Every scenario still runs, checks what arrives, and ends up on the page.

Nothing here asserts a time: in this size the figures mean nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.performance.build import CannotBuild, NoCompiler, build, compiler
from tests.performance.processes import ROOT
from tests.performance.scenarios import SCENARIOS

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"),
        reason="the bench needs Linux: epoll, /proc, affinity",
    ),
    # The first of these runs everything: some forty seconds, and a multiple of that where
    # the cores, to which its processes are bound, are busy with other tests.
    pytest.mark.timeout(600),
]


def bench(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.performance", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """All scenarios once, in the tiny size; where the page and its pictures are."""
    folder = tmp_path_factory.mktemp("page")
    try:
        build(folder)
    except CannotBuild as missing:
        pytest.skip(str(missing))
    return bench("--tiny", "--out", str(folder)), folder


def test_the_whole_bench_runs(whole_run):
    done, _ = whole_run

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(whole_run) -> Path:
    """Where the page is, if the run has come to its end."""
    done, folder = whole_run
    if done.returncode:
        pytest.fail("no page: test_the_whole_bench_runs shows what stopped the run", pytrace=False)
    return folder


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_fills_its_page(scenario, folder):
    page = (folder / "benchmarks.md").read_text()
    section = page.partition(f"\n## {scenario.title}\n")[2].partition("\n## ")[0]

    for subject in scenario.subjects:
        if missing := subject.missing():
            assert f"- {subject.title}: left out, there is no {', '.join(missing)} here." in section
        else:
            assert f"- {subject.title}: {subject.setup}." in section
    for figure in scenario.figures:
        assert f"| {figure.title} | clients |" in section
    assert "no usable run" not in section
    assert "Failed" not in section


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_has_a_picture_for_each_figure(scenario, folder):
    page = (folder / "benchmarks.md").read_text()
    several = len(scenario.figures) > 1
    taking_part = [subject for subject in scenario.subjects if not subject.missing()]

    for figure in scenario.figures:
        name = f"{scenario.name}-{figure.name}.svg" if several else f"{scenario.name}.svg"
        assert f"(benchmarks/{name})" in page
        picture = ET.parse(folder / "benchmarks" / name)
        texts = [text.text for text in picture.findall(".//{*}text")]
        assert {subject.title.replace("`", "") for subject in taking_part} <= set(texts)


def test_without_a_compiler_the_bench_says_so_and_stops():
    done = bench("--tiny", "--only", "fanout", CC="no-such-compiler")

    assert done.returncode == 1
    assert "no C compiler" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_headers_of_its_libraries_the_bench_names_them(tmp_path):
    try:
        cc = compiler()
    except NoCompiler as missing:
        pytest.skip(str(missing))
    (tmp_path / "openssl").mkdir()
    (tmp_path / "openssl" / "ssl.h").write_text('#error "openssl/ssl.h is not here"')
    poor = tmp_path / "poor-cc"
    poor.write_text(f'#!/bin/sh\nexec {cc} -I{tmp_path} "$@"\n')
    poor.chmod(0o755)

    done = bench("--tiny", "--only", "fanout", CC=str(poor))

    assert done.returncode == 1
    assert "libssl-dev" in done.stderr
    assert "Traceback" not in done.stderr
