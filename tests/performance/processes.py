"""The server on one core, the load generator on another, and an end for both.

Whatever is started here is ended here, by its own pid: the server when its standard
input is closed, and by a signal if that is not enough.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.performance.certificate import make_certificate
from tests.performance.sample import Sample
from tests.performance.serving import die_with_parent

ROOT = Path(__file__).parents[2]
START_WITHIN = 20.0
END_WITHIN = 10.0


class RunFailed(Exception):
    """The server did not start, or what arrived was not what should have."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the server and the load generator run."""

    server: int
    generator: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The last two cores that this process may use; the first is the busiest."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(server=usable[-1], generator=usable[-2] if len(usable) > 1 else usable[-1])

    @property
    def apart(self) -> bool:
        return self.server != self.generator


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started in here runs on ``core`` from its first instruction on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Tools:
    """The compiled programs, the interpreter for everything else, and a certificate."""

    def __init__(self, programs: Mapping[str, Path], cores: Cores, folder: Path) -> None:
        self._programs = {"python": Path(sys.executable), **programs}
        self.cores = cores
        self.certificate = folder
        make_certificate(folder)

    def command(self, words: Sequence[str]) -> list[str]:
        return [str(self._programs[words[0]]), *words[1:]]


@dataclass(frozen=True, slots=True)
class RunningServer:
    pid: int
    port: int
    trigger: int
    """The file descriptor of the writing end of its standard input."""


def _tail(errors: tempfile._TemporaryFileWrapper[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace")[-2000:]


def _wait_for_port(process: subprocess.Popen[bytes]) -> int | None:
    """Read ``READY port``; None if it does not come in time."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_WITHIN):
            return None
    words = process.stdout.readline().split()
    return int(words[1]) if words[:1] == [b"READY"] else None


@contextlib.contextmanager
def serving(tools: Tools, words: Sequence[str], port: int | None = None) -> Iterator[RunningServer]:
    """Start a server, and end it; it says which port it took, unless it was told one."""
    command = tools.command(words)
    reading, writing = os.pipe()
    with tempfile.NamedTemporaryFile() as errors:
        with pinned(tools.cores.server):
            process = subprocess.Popen(
                command,
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                preexec_fn=die_with_parent,
            )
        os.close(reading)
        try:
            taken = port or _wait_for_port(process)
            if taken is None:
                raise RunFailed(f"{' '.join(words)} did not start: {_tail(errors)}")
            try:
                yield RunningServer(process.pid, taken, writing)
            except RunFailed as failure:
                raise RunFailed(f"{failure}\nserver: {_tail(errors)}") from None
        finally:
            os.close(writing)
            if port is not None:
                process.terminate()
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for an end by itself, then ask, then insist."""
    for insist in (process.terminate, process.kill, None):
        try:
            process.wait(END_WITHIN)
            break
        except subprocess.TimeoutExpired:
            if insist is not None:
                insist()
    assert process.stdout is not None
    process.stdout.close()


def generate(
    tools: Tools, mode: str, server: RunningServer, options: Mapping[str, object], deadline: float
) -> Sample:
    """Put a load on the server; return what it cost."""
    options = {
        "port": server.port,
        "pid": server.pid,
        "trigger": server.trigger,
        "deadline": deadline,
        **options,
    }
    command = tools.command(["loadgen", mode])
    for name, value in options.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    # This process waits on the same core: it has nothing to do meanwhile.
    with pinned(tools.cores.generator):
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                check=False,
                pass_fds=[server.trigger],
                text=True,
                timeout=deadline + 5,
            )
        except subprocess.TimeoutExpired:
            raise RunFailed("the load generator did not end") from None
    if done.returncode != 0:
        raise RunFailed(done.stderr.strip() or f"loadgen ended with {done.returncode}")
    return Sample(**json.loads(done.stdout))
