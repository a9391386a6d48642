"""``eyewall serve --reload``: start the server again when a source file, or that of the settings,
has changed.

The server is a process of its own, so that one that can't even start, because of a
mistake in the file just saved, is started again after the next change, and nothing of
the old one is left in the new one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

POLL = 0.3
"""Seconds between two looks. A thousand files take some 5 ms."""

PATIENCE = 3.0
"""Seconds that the old server may take to end in order; then it is told again, which
ends it at once, and after as many more it is killed."""

_NOT_SOURCES = {"__pycache__", "node_modules", "site-packages", "build", "dist"}

Snapshot = dict[str, tuple[int, int]]


def snapshot(folder: Path, beside: Sequence[Path] = ()) -> Snapshot:
    """Return time and size of every ``.py`` file below ``folder``, and of those ``beside``.

    Hidden folders, virtual environments and build folders are left out.
    """
    paths = [*_sources(folder), *map(str, beside)]
    return {path: stamp for path in paths if (stamp := _stamp(path))}


def _sources(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NOT_SOURCES
            and not (Path(place) / name / "pyvenv.cfg").exists()
        ]
        yield from (str(Path(place) / name) for name in files if name.endswith(".py"))


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  (thousands of times: no Path for each)
    except OSError:  # gone since it was listed, as editors do it
        return None
    return found.st_mtime_ns, found.st_size


def serve(command: Sequence[str], folder: Path, beside: Sequence[Path] = ()) -> int:
    """Run ``command`` again and again, until SIGTERM or SIGINT; return the exit status.

    It begins anew when a source below ``folder`` changes, or a file ``beside``.
    A server that ends by itself is not started again before a change.
    """
    stop = _Stop()
    seen = snapshot(folder, beside)
    child = subprocess.Popen(command)  # noqa: S603  (our own command line)
    while not stop.asked:
        time.sleep(POLL)
        now = snapshot(folder, beside)
        if now == seen or stop.asked:
            continue
        changed = sorted(
            path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)
        )
        print(f"eyewall: {Path(changed[0]).name} has changed", file=sys.stderr, flush=True)
        seen = now
        _end(child)
        child = subprocess.Popen(command)  # noqa: S603  (our own command line)
    return _end(child)


class _Stop:
    """Notes that the process was asked to end. A terminal's Ctrl-C reaches the child too."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _end(child: subprocess.Popen[bytes]) -> int:
    for tell in (child.terminate, child.terminate, child.kill):
        if child.poll() is None:
            tell()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue
        break
    status = child.wait()
    return status if status >= 0 else 128 - status  # ended by a signal, as shells tell it
