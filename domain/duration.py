"""Durations: seconds as ``float``, or a ``timedelta`` wherever seconds are."""

from __future__ import annotations

import math
from datetime import timedelta

Seconds = float | timedelta


def seconds(value: Seconds, name: str, *, positive: bool = False) -> float:
    """Return ``value`` in seconds.

    Raises ``ValueError`` naming ``name`` if it is not a finite number of at least
    zero (with ``positive``: above zero).
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be seconds or a timedelta, not {value!r}")
    if not _is_finite(value) or value < 0 or (positive and value == 0):
        least = "more than 0" if positive else "at least 0"
        raise ValueError(f"{name} must be {least} seconds, not {value!r:.40}")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def count(value: int, name: str, *, least: int = 1) -> int:
    """Return ``value``; raises ``ValueError`` unless it is an int >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
