"""Ports for servers that have to know theirs before they start."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket

LOWEST, HIGHEST = 20_000, 32_000
"""Below those that the kernel gives to clients."""

SHARES = 12
"""How many workers of a run have ports of their own."""


def _share() -> range:
    """Return the ports of this process. Workers of one run have ports of their own: one that
    is free would be taken by another between the look and its use."""
    worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    if worker is None:
        return range(LOWEST, HIGHEST)
    size = (HIGHEST - LOWEST) // SHARES
    first = LOWEST + int(worker[1]) % SHARES * size
    return range(first, first + size)


_dice = random.Random()
"""Its own, because hypothesis seeds the common one."""


def free_port() -> int:
    """Return a port of this machine that nobody has."""
    share = _share()
    for port in _dice.sample(share, k=200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError(f"no free port from {share.start} to {share.stop}")
