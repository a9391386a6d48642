"""A process that has no descriptor left: it waits, and goes on by itself."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.faults.support import HANDSHAKE, WITHIN, die_with_parent, until

LIMIT = 64
CLIENTS = 100

APP = """
import asyncio
from eyewall import Server

server = Server()

async def tell():
    print(server.port, flush=True)
    told = 0
    while True:
        await asyncio.sleep(0.01)
        if (pauses := server.hub.stats().accept_pauses) > told:
            told = pauses
            print(told, flush=True)

server.background(tell)
"""


class Caller:
    """A client that has asked to be let in."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), WITHIN)
        lines = ["GET /ws HTTP/1.1", "Host: x", *(f"{n}: {v}" for n, v in HANDSHAKE.items())]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.socket.setblocking(False)
        self.answer = b""

    def is_in(self) -> bool:
        try:
            self.answer += self.socket.recv(4096)
        except BlockingIOError:
            pass
        return self.answer.startswith(b"HTTP/1.1 101 ")


def cpu(pid: int) -> float:
    """Seconds of a processor that the process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def serving(tmp_path):
    """``eyewall serve`` with ``LIMIT`` descriptors, its log, and the port that it says."""
    (tmp_path / "app.py").write_text(APP)
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "eyewall", "serve", "app:server", "--port", "0"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=with_few,
        ) as process,
    ):
        guard = threading.Timer(3 * WITHIN, process.kill)
        guard.start()
        try:
            yield process, tmp_path / "log", int(process.stdout.readline())
        finally:
            guard.cancel()
            process.kill()


def with_few() -> None:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


def test_a_hundred_clients_at_64_descriptors_are_served_in_turns(serving):
    """Neither a processor nor a disk is used up by those who have to wait."""
    process, log, port = serving
    callers = [Caller(port) for _ in range(CLIENTS)]
    assert process.stdout.readline() == "1\n"
    begun, used, written = time.monotonic(), cpu(process.pid), log.stat().st_size
    while int(process.stdout.readline()) < 3:
        pass

    # A process that turns in a circle uses as much as it gets.
    assert cpu(process.pid) - used < (time.monotonic() - begun) / 4
    assert log.stat().st_size - written < 1000
    assert "accepting_paused" in log.read_text()
    assert "Traceback" not in log.read_text()
    inside = [caller for caller in callers if caller.is_in()]
    assert len(inside) > LIMIT / 3
    for caller in inside:
        caller.socket.close()
        callers.remove(caller)

    until(lambda: all(caller.is_in() for caller in callers), "the turn of the others")
    for caller in callers:
        caller.socket.close()
