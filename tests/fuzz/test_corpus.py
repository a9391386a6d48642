"""The whole corpus holds, with and without atheris; and atheris still reaches our code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tracemalloc

import pytest

from tests.fuzz.corpus import CORPUS, ROOT, SEED, TARGETS, check_of, files
from tests.fuzz.reached import is_reached
from tests.fuzz.seeds import SEEDS

SECONDS = 2
LARGEST = 500_000
"""Bytes of the corpus in all: it is part of every clone."""


def replay(target: str) -> None:
    check = check_of(target)
    for path in files(target):
        try:
            check(path.read_bytes())
        except Exception as error:
            error.add_note(f"with {path.relative_to(ROOT)}")
            raise


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_was_found_holds(target):
    replay(target)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_in_the_corpus_takes_much_memory(target):
    """A few KiB come in, and the largest message allowed is 2 MiB, inflated: it is held by
    us and by what we are compared with."""
    check = check_of(target)
    for path in files(target):
        data = path.read_bytes()
        tracemalloc.start()
        check(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_MEMORY[target], f"{peak} bytes with {path.relative_to(ROOT)}"


MIB = 1 << 20
MOST_MEMORY = {
    "parser": 12 * MIB,
    "deflate": 12 * MIB,
    "json": MIB,
    "msgpack": MIB,
    "envelope": MIB,
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_is_in_the_corpus(target):
    names = {path.name.removeprefix(SEED) for path in files(target) if SEED in path.name}

    assert names == set(SEEDS[target])


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < LARGEST


# --- the targets can fail


@pytest.mark.parametrize(
    ("target", "module", "name", "wrong"),
    [
        ("parser", "eyewall.adapters.web.protocol.parser", "_check_text", lambda payload: None),
        ("parser", "eyewall.adapters.web.protocol.parser", "_check_close", lambda payload: None),
        ("parser", "eyewall.adapters.web.protocol.parser", "MAX_EMPTY_FRAGMENTS", 1000),
        ("deflate", "eyewall.adapters.web.protocol.deflate", "EMPTY_FINAL_BLOCK", b""),
        ("deflate", "eyewall.adapters.web.protocol.deflate", "RATIO_EXEMPT_BYTES", 1 << 30),
        ("json", "eyewall.adapters.codec.json", "_deep", lambda payload: False),
        ("json", "eyewall.adapters.codec.json", "MAX_TOPIC", 300),
        ("msgpack", "eyewall.adapters.codec.msgpack", "_check", lambda value: None),
        ("msgpack", "eyewall.adapters.codec.msgpack", "_levels", lambda value: 0),
        ("envelope", "eyewall.adapters.codec.msgpack", "_number", float),
        ("envelope", "eyewall.application.cluster.packet", "RecursionError", KeyError),
    ],
)
def test_a_mistake_of_ours_is_noticed(target, module, name, wrong, monkeypatch):
    monkeypatch.setattr(importlib.import_module(module), name, wrong, raising=False)

    with pytest.raises((AssertionError, RecursionError)):
        replay(target)


# --- under atheris


@pytest.mark.parametrize("target", TARGETS)
def test_atheris_sees_all_that_a_target_comes_to(target):
    check = check_of(target)
    called: set[str] = set()

    def note(frame, event, _):
        called.add(frame.f_globals.get("__name__", ""))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for path in files(target):
            check(path.read_bytes())
    finally:
        sys.setprofile(before)

    ours = {name for name in called if name.startswith("eyewall.")}
    assert ours
    assert [name for name in sorted(ours) if not is_reached(name)] == []


@pytest.fixture
def atheris() -> None:
    if importlib.util.find_spec("atheris") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("atheris is not installed: see the group fuzz in pyproject.toml")
        pytest.skip("atheris is not installed")


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run_finds_nothing(target, atheris, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.run", target, "", f"-artifact_prefix={tmp_path}/"),
            *(f"-max_total_time={SECONDS}", "-max_len=1000", tmp_path, CORPUS / target),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr + done.stdout
    assert int(re.findall(r"cov: (\d+)", done.stderr)[-1]) > 50, "atheris does not see our code"
