"""The page of limits says what the code does."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eyewall

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
UNITS = {"KiB": 1024, "MiB": 1024**2}


def rows() -> Iterator[tuple[str, str, str]]:
    """What, the number, and where it is."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[4].startswith("`"):
            yield cells[0], cells[1], cells[4].strip("`")


def number(text: str) -> float | None:
    if text == "none":
        return None
    found = re.match(r"([\d,]+) ?(\w+)?", text)
    assert found is not None, text
    return int(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def actual(where: str) -> Any:
    if match := re.fullmatch(r"(\w+)\((\w+)\)", where):
        return inspect.signature(getattr(eyewall, match[1])).parameters[match[2]].default
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


ROWS = [(what, text, where) for what, text, where in rows() if text != "half"]


@pytest.mark.parametrize(("what", "text", "where"), ROWS, ids=[where for *_, where in ROWS])
def test_a_number_on_the_page_is_the_one_in_the_code(what, text, where):
    assert number(text) == actual(where), what


def test_the_page_has_them_all():
    assert len(ROWS) >= 45
