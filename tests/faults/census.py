"""Counts everything in a server's process that a connection could leave behind.

Nothing is counted by name, so that what is built later is counted too: all objects of the
package, what their collections hold, the numbers that they keep, and what the event loop
and the libraries below have of a connection.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from eyewall.application.concurrency.timers import Deadline, TimerQueue

BELOW = ("asyncio", "_asyncio", "tornado", "socket", "ssl", "_ssl")
"""Where the classes are that a connection or a request is made of, under the package's own."""

UNSTEADY = {
    "TimerQueue._cancelled",  # those that are no longer due, and wait to be thrown away
    "TimerQueue._heap",  # the same ones; the others are counted as "due"
    "WriteBatcher._number",
    "Heartbeat._last_tick",
    "Heartbeat._scheduled_count",
    "Heartbeat._wheel",  # has room for a tick until it has passed; who is in it counts as such
    "MemoryState._sessions",  # keeps that a user was sent away, for as long as a session lives
    "MemoryState._last_seen",  # is remembered on purpose, and bounded
    "SocketLoop.received_count",
    "Parser._inflated",  # of the last chunk that was read
    "TcpLink.due_tick",
    "Poller._batches",
    "RefusalLog._left_out",  # by reason, of which there are few
    "RefusalLog._lines",
    "StallLog._stalls",
    "Stalls._ticks",
    "Stats.drops",
    "Stats.errors",
    "Stats.in_messages",
    "Stats.incidents",
    "Stats.out_messages",
    "Stats.refusals",  # by reason, of which there are few
    "TlsLink.due_tick",
    "asyncio.locks.Event",  # the gates of the application that the tests bring
    "asyncio.events.TimerHandle",  # the cancelled ones too; the others count as "timers"
}
"""What may differ: it tells of the past, and takes no room."""


def census() -> dict[str, int]:
    """Return how many there are of each class, in each collection, and each number."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        name = _counted_as(kind)
        if not name or (isinstance(each, asyncio.Task) and each.done()):
            continue  # a part may keep the last task it had
        if kind is CoroutineType:
            found[name] += each.cr_frame is not None
            continue
        found[name] += 1
        if _is_own(kind):
            _count_attributes(each, found)
    _count_globals(found)
    _count_loop(found)
    return {name: count for name, count in found.items() if count and name not in UNSTEADY}


@cache
def _is_own(kind: type) -> bool:
    return any(base.__module__.startswith("eyewall.") for base in kind.__mro__)


@cache
def _counted_as(kind: type) -> str:
    """Return the name that objects of this class are counted under; empty if they are not."""
    if kind is Deadline:
        return ""  # the cancelled ones go later
    if _is_own(kind):
        return kind.__qualname__
    if kind.__module__.partition(".")[0] in BELOW:
        return f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, CoroutineType | GeneratorType | AsyncGeneratorType | memoryview):
        return kind.__name__
    return ""


def _count_attributes(part: Any, found: Counter[str]) -> None:
    kind = type(part)
    if isinstance(part, TimerQueue):
        found["due"] += len(part)
    for name, value in _attributes(part):
        if isinstance(value, asyncio.TimerHandle):
            # Its one timer may wait for something that was called off meanwhile. What is
            # left are the timers that nobody keeps; a part too many counts as such.
            found["timers"] -= value._scheduled and not value.cancelled()
        elif isinstance(value, int):
            found[f"{kind.__qualname__}.{name}"] += value
        else:
            found[f"{kind.__qualname__}.{name}"] += _size(value)


def _size(value: Any, depth: int = 3) -> int:
    """How much a collection holds, with the collections in it; 0 for anything else."""
    if isinstance(value, dict):
        return len(value) + (sum(_size(v, depth - 1) for v in value.values()) if depth else 0)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return len(value) + (sum(_size(v, depth - 1) for v in value) if depth else 0)
    return len(value) if isinstance(value, bytes | bytearray | memoryview) else 0


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    names = set(getattr(part, "__dict__", ()))
    for kind in type(part).__mro__:
        slots = getattr(kind, "__slots__", ())
        names.update((slots,) if isinstance(slots, str) else slots)
    for name in names:
        # A slot that was never filled has no value; a property is no state.
        value = getattr(part, name, None)
        if value is not None:
            yield name, value


def _count_globals(found: Counter[str]) -> None:
    """What modules and classes of the package hold, and what is remembered of calls."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "eyewall":
            for owner in (module, *(v for v in vars(module).values() if isinstance(v, type))):
                for held, value in list(vars(owner).items()):
                    if not held.startswith("__") and (size := _size(value)):
                        found[f"{owner.__name__}.{held}"] = size


def _count_loop(found: Counter[str]) -> None:
    loop: Any = asyncio.get_running_loop()
    found["tasks"] = len(asyncio.all_tasks())
    found["readers"] = len(loop._selector.get_map())
    found["timers"] += sum(not timer.cancelled() for timer in loop._scheduled)
