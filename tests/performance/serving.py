"""What every measured server in Python does besides serving.

It dies with its parent, says which port it took, publishes what is asked of it on
standard input, and ends when that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

PR_SET_PDEATHSIG = 1
WORDS = ["what", "is", "said", "in", "a", "room", "all", "who", "are", "there", "hear", "once"]
PADDING = " ".join(Random(1).choices(WORDS, k=20_000))
"""Compresses about as well as what people write."""

MESSAGE_IDS = count(1)


class Order(NamedTuple):
    """Publish messages ``first``, ``first`` + 1, ... in one tick, each padded by ``fill``."""

    first: int
    count: int
    fill: int

    def payloads(self) -> list[dict[str, object]]:
        padding = PADDING[: self.fill]
        return [{"seq": self.first + i, "pad": padding} for i in range(self.count)]


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the parent is gone already")


def say_ready(port: int) -> None:
    print("READY", port, flush=True)


def encode(message: dict[str, object]) -> str:
    return json.dumps(message, separators=(",", ":"))


def published(data: dict[str, object]) -> str:
    """Return a message as a server without an envelope of its own would write it."""
    return encode({"id": f"m{next(MESSAGE_IDS):019}", "topic": "bench:tick", "data": data})


def tls_context(folder: str) -> ssl.SSLContext | None:
    """Return what a server needs for TLS with the certificate in ``folder``; none for ""."""
    if not folder:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(folder) / "certificate.pem", Path(folder) / "key.pem")
    return context


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a peer on uvloop, the fast option that is open to all of them, if it is here."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())


async def orders() -> AsyncIterator[Order]:
    """Yield what is ordered by lines of ``FIRST COUNT FILL``, until standard input ends.

    A line of ``collect TIMES`` has the garbage collected here and now.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        words = line.split()
        if words[0] == b"collect":
            for _ in range(int(words[1])):
                gc.collect()
        else:
            yield Order(*map(int, words))
