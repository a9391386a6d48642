"""Runs a program until it is told to end: SIGTERM and SIGINT drain, a second ends at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def run_until_signal(
    *, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> None:
    """Await ``start``, then a signal, then ``stop``."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal(number: int) -> None:
        if asked.is_set():
            # Whoever asks twice does not want to wait. 128 + n is the shell's custom.
            os._exit(128 + number)
        asked.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await start()
        await asked.wait()
        await stop()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
