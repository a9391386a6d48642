"""``eyewall serve --reload``: restarts the server when a source or settings file changes.

The server is a child process. So a server that can't start, because the file just saved has a
mistake, is started again after the next change, and a new server has no state of the old one.
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

POLL_INTERVAL = 0.3
"""Seconds between two looks at the files. A thousand files take some 5 ms."""

STOP_TIMEOUT = 3.0
"""Seconds that the old server has to drain. Then it gets a second SIGTERM, which ends it at
once, and after as many seconds again SIGKILL."""

_NOT_SOURCES = {"__pycache__", "node_modules", "site-packages", "build", "dist"}

Snapshot = dict[str, tuple[int, int]]


def snapshot(folder: Path, extra: Sequence[Path] = ()) -> Snapshot:
    """Return modification time and size of each ``.py`` file below ``folder``, and of ``extra``.

    Hidden folders, virtual environments and build folders are left out.
    """
    paths = [*_sources(folder), *map(str, extra)]
    return {path: stamp for path in paths if (stamp := _stamp(path))}


def _sources(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NOT_SOURCES
            and not (Path(parent) / name / "pyvenv.cfg").exists()
        ]
        yield from (str(Path(parent) / name) for name in files if name.endswith(".py"))


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  (called thousands of times)
    except OSError:  # gone since it was listed: editors replace files
        return None
    return found.st_mtime_ns, found.st_size


def serve(command: Sequence[str], folder: Path, extra: Sequence[Path] = ()) -> int:
    """Run ``command`` until SIGTERM or SIGINT; return its exit status.

    Restarts it when a source below ``folder``, or a file of ``extra``, changes. A server that
    ends by itself is started again after the next change.
    """
    stop = _StopRequest()
    seen = snapshot(folder, extra)
    child = subprocess.Popen(command)  # noqa: S603  (our own command line)
    while not stop.is_set:
        time.sleep(POLL_INTERVAL)
        now = snapshot(folder, extra)
        if now == seen or stop.is_set:
            continue
        changed = sorted(
            path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)
        )
        print(f"eyewall: {Path(changed[0]).name} has changed", file=sys.stderr, flush=True)
        seen = now
        _stop(child)
        child = subprocess.Popen(command)  # noqa: S603  (our own command line)
    return _stop(child)


class _StopRequest:
    """Whether SIGTERM or SIGINT has come. A terminal's Ctrl-C reaches the child too."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


def _stop(child: subprocess.Popen[bytes]) -> int:
    for tell in (child.terminate, child.terminate, child.kill):
        if child.poll() is None:
            tell()
        try:
            child.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            continue
        break
    status = child.wait()
    return status if status >= 0 else 128 - status  # ended by a signal: the shell's convention
