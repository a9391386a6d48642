"""What every measured server in Python does besides serving.

It dies with its parent, says which port it took, publishes what is asked of it on
standard input, and ends when that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

PR_SET_PDEATHSIG = 1


class Order(NamedTuple):
    """Publish messages ``first``, ``first`` + 1, ... in one tick, each padded by ``fill``."""

    first: int
    count: int
    fill: int

    def payloads(self) -> list[dict[str, object]]:
        padding = "x" * self.fill
        return [{"seq": self.first + i, "pad": padding} for i in range(self.count)]


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the parent is gone already")


def say_ready(port: int) -> None:
    print("READY", port, flush=True)


async def orders() -> AsyncIterator[Order]:
    """Yield what is ordered by lines of ``FIRST COUNT FILL``, until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        first, count, fill = map(int, line.split())
        yield Order(first, count, fill)
