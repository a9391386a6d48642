"""The page of guarantees names for each of them a test that makes it happen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = [
    line.strip("|").split(" | ")
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
SOURCES = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "entrypoints/testing").rglob("*.py")]
TESTS = {name for path in SOURCES for name in re.findall(r"def (test_\w+)\(", path.read_text())}


def test_every_row_names_a_test():
    tests = [cells[-1].strip() for cells in ROWS]

    assert [test for test in tests if not re.fullmatch(r"`test_\w+`|test", test)] == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", PAGE))))
def test_the_test_is_there(name):
    assert name in TESTS
