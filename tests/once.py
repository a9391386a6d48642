"""What takes long to make is made once, also where several workers want it."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


def once(
    name: str,
    make: Callable[[Path], object],
    config: pytest.Config,
    factory: pytest.TempPathFactory,
) -> Path:
    """Return a folder of this run that ``make`` has filled; the others wait meanwhile."""
    base = factory.getbasetemp()
    if hasattr(config, "workerinput"):
        base = base.parent  # the folder of the run, in which each worker has its own
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=base))
            make(unfinished)
            unfinished.rename(folder)
    return folder
