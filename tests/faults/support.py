"""Real servers in processes of their own; ``clients`` has what connects to them."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.certificate import certificate, tls_contexts

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
"""Stretches every time of these tests, for slow machines."""

WITHIN = 60 * UNIT
"""Seconds that anything may take which is expected to happen, also where other tests use
the same cores."""

over_tls = False
"""Whether servers and clients made here speak TLS; the fixture ``transport`` says so."""

MIB = 1024 * 1024
_PR_SET_PDEATHSIG = 1


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def until(
    condition: Callable[[], Any],
    what: str | Callable[[], str] = "it",
    within: float = WITHIN,
    pause: float = 0.003,
) -> Any:
    """Return what ``condition`` returns as soon as that is true; fail when it takes too long.

    ``pause`` is in seconds: longer where the look itself keeps the server busy.
    """
    deadline = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > deadline:
            name = what if isinstance(what, str) else what()
            raise AssertionError(f"{name} did not happen within {within} s")
        time.sleep(pause)
    return found


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# --- the server


class HubProcess:
    """``eyewall serve hub_app:server``, with a line to it (see ``hub_app``)."""

    def __init__(self, folder: Path, *, app: str = "hub_app:server", **like: Any) -> None:
        self._notes = folder / "notes"
        self._notes.touch()
        self._read = 0
        """Bytes of the notes that were read: tests look at them again and again."""
        self._heard: list[list[str]] = []
        self.log = folder / "log"
        pem = str(certificate())
        tls = {"EYEWALL_TLS__CERT": pem, "EYEWALL_TLS__KEY": pem} if over_tls else {}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eyewall", "serve", app, "--port", "0"],
                cwd=Path(__file__).parent,
                env={
                    **os.environ,
                    **tls,
                    "HUB_APP": json.dumps({**like, "notes": str(self._notes)}),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self.pid = self.process.pid
        self.ports: list[int] = []

    def __enter__(self) -> Self:
        try:
            self.ports = self.ask("ports")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def port(self) -> int:
        return self.ports[0]

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have the server do something; returns its answer."""
        self.tell(do, **arguments)
        return self.answer(do)

    def tell(self, do: str, **arguments: Any) -> None:
        """Have the server do something that needs the clients; ``answer`` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, to: str) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], WITHIN)
        line = self.process.stdout.readline() if ready else b""
        assert line, f"no answer to {to}: {self.log.read_text()[-3000:]}"
        return json.loads(line)

    @property
    def notes(self) -> list[list[str]]:
        """What the hooks heard: the event, the connection, the user or room, the reason."""
        with self._notes.open("rb") as notes:
            notes.seek(self._read)
            news, end, _ = notes.read().rpartition(b"\n")
        self._read += len(news + end)
        self._heard += [line.split() for line in news.decode().splitlines()]
        return self._heard.copy()

    def noted(self, event: str, name: str) -> bool:
        """Whether ``event`` was heard of a user, a room or a connection."""
        return any(line[0] == event and name in line[1:] for line in self.notes)

    @property
    def complaints(self) -> list[str]:
        """The lines of the log that tell of a fault of the server."""
        words = ("error", "Traceback", "exception", "never retrieved", "never awaited")
        lines = self.log.read_text().splitlines()
        # A refusal that is told at info names its error, too.
        return [line for line in lines if any(w in line for w in words) and "[info " not in line]

    @property
    def rss(self) -> int:
        """Bytes of memory in use."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    @property
    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exited(self, within: float) -> int:
        """Wait for the end of the process; returns its status."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            log = self.log.read_text()[-3000:]
            raise AssertionError(f"still running after {within} s: {log}") from None

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        """Ask over HTTP; returns the answer, which has been read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)
        if over_tls:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=WITHIN, context=tls_contexts()[1]
            )
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            response.read()
            return response
        finally:
            connection.close()

    def knock(self) -> http.client.HTTPResponse:
        """Try a handshake that should be refused."""
        return self.get("/ws", **HANDSHAKE)


def assert_pairs(notes: list[list[str]]) -> None:
    """Every connect hook has its disconnect hook, once and later; joins and leaves alike."""
    for begin, end in (("connect", "disconnect"), ("join", "leave")):
        at: dict[tuple[str, ...], list[str]] = {}
        for event, *who in notes:
            if event in {begin, end}:
                key = (who[0],) if begin == "connect" else tuple(who[:2])
                at.setdefault(key, []).append(event)
        odd = {key: events for key, events in at.items() if events != [begin, end]}
        assert not odd, odd
