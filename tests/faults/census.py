"""Counts everything in a server's process that a connection could leave behind."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from eyewall import Server
from eyewall.application.deadlines import Deadlines


def census(servers: list[Server]) -> dict[str, int]:
    """Return how many there are of each class of the package, and in each collection."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        if type(each).__module__.startswith("eyewall."):
            found[type(each).__name__] += 1
    found["tasks"] = len(asyncio.all_tasks())
    # Their heaps keep what was cancelled for a while; what counts is what is due.
    found.pop("Deadline", None)
    for part in _parts(servers):
        if isinstance(part, Deadlines):
            found["deadlines"] += len(part)
            continue
        for name, value in _attributes(part):
            if isinstance(value, dict):
                size = sum(len(v) if isinstance(v, (set, dict)) else 1 for v in value.values())
            elif isinstance(value, (set, list, deque)):
                size = len(value)
            elif name in {"waiting", "deciding", "_running", "_taken"} and isinstance(value, int):
                size = int(value)
            else:
                continue
            found[f"{type(part).__name__}.{name}"] += size
    return {name: count for name, count in found.items() if count}


def _parts(roots: list[Any]) -> Iterator[Any]:
    """All objects of the package that are reached by attributes alone: what a server is
    made of, without what its collections hold."""
    seen: dict[int, Any] = {}
    found = list(roots)
    while found:
        part = found.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            found += [v for _, v in _attributes(part) if type(v).__module__.startswith("eyewall.")]


def _attributes(part: Any) -> list[tuple[str, Any]]:
    names = set(getattr(part, "__dict__", ()))
    for kind in type(part).__mro__:
        names.update(getattr(kind, "__slots__", ()))
    return [(name, getattr(part, name, None)) for name in names]
