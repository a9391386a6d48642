"""Makes a folder once per run, also where several workers need it."""

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
    """Return the folder ``name`` of this run.

    The first worker that asks has ``make`` fill it; the other workers wait for that.
    """
    base = factory.getbasetemp()
    if hasattr(config, "workerinput"):
        base = base.parent  # the folder of the run: each worker has a folder in it
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=base))
            make(unfinished)
            unfinished.rename(folder)
    return folder
