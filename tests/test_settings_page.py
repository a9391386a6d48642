"""The page of settings has every key that there is, with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eyewall.settings.schema import known_keys
from eyewall.settings.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE))


def shown(value: Any) -> str:
    if value is None:
        return "off"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value if isinstance(value, int | float) else dict(value)}`"


def test_the_page_has_all_of_them_in_order_and_no_other():
    assert list(ROWS) == list(known_keys())


@pytest.mark.parametrize("key", list(known_keys()))
def test_a_default_on_the_page_is_the_one_in_the_code(key):
    assert ROWS[key] == shown(Settings().value(key))
