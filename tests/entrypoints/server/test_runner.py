"""A program that runs until it is told to end, as a process of its own."""

from __future__ import annotations

import errno
import io
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, Any

import pytest

from eyewall import Server
from tests.entrypoints.wire import WITHIN, peer
from tests.faults.support import die_with_parent

PATIENCE = 4 * WITHIN
"""Seconds for what includes the start or the end of an interpreter."""

PROGRAM = """
import asyncio, signal, sys, time
from eyewall import Server

def say(text):
    print(text, flush=True)

server = Server()

async def up():
    say(server.port)

server.background(up)
BODY
before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
server.run(port=0)
assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
say("returned")
"""

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])


class Program:
    """A process, and the lines that it says."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process = process
        self._log = log
        self.signal = process.send_signal

    def line(self) -> str:
        return self._process.stdout.readline().strip()

    def ended(self) -> tuple[int, list[str], str]:
        """Wait for the end: the status, the lines that were not read, what it complained."""
        lines = self._process.stdout.read().split()
        status = self._process.wait()
        self._log.seek(0)
        log = self._log.read()
        return status, lines, log if "Traceback" in log or "never" in log else ""


@contextmanager
def running(body: str = "", loop: str = "asyncio") -> Any:
    if loop == "uvloop":
        body = f"import uvloop\nasyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n{body}"
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.replace("BODY", body)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=die_with_parent,
        ) as process,
    ):
        # A line that does not come must not hold up the test for ever.
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        try:
            yield Program(process, log)
        finally:
            guard.cancel()
            process.kill()


@BOTH
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_signal_drains_and_ends(number, loop):
    """Clients are told, the shutdown hooks run, ``run`` returns, the status is 0; the
    program's own way with signals is put back."""
    with running("server.on_shutdown(lambda: say('down'))", loop) as program:
        url = f"ws://127.0.0.1:{int(program.line())}/ws"
        async with peer(url) as client:
            program.signal(number)

            assert await client.closed() == (1012, "server_shutdown")
        assert program.ended() == (0, ["down", "returned"], "")


HANGS = """
async def last():
    say("closing")
    await asyncio.Event().wait()
server.on_shutdown(last)
"""

BLOCKS = """
def last():
    say("closing")
    time.sleep(1000)
server.on_shutdown(last)
"""


@BOTH
@pytest.mark.parametrize("body", [HANGS, BLOCKS], ids=["that waits", "that blocks"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_second_signal_ends_at_once(number, body, loop):
    """Whatever the shutdown is at, and even if something holds the event loop. The status
    is the shell's for that signal."""
    with running(body, loop) as program:
        program.line()
        program.signal(signal.SIGTERM)
        assert program.line() == "closing"

        program.signal(number)

        assert program.ended() == (128 + number, [], "")


@BOTH
def test_a_signal_during_the_start_ends_it(number):
    """A startup hook that waits for a database that is not there must not hold the
    process; what was opened is closed."""
    body = """
async def hook():
    say("starting")
    try:
        await asyncio.Event().wait()
    finally:
        say("cancelled")
server.on_startup(hook)
server.on_shutdown(lambda: say("down"))
"""
    with running(body) as program:
        assert program.line() == "starting"

        program.signal(number)

        assert program.ended() == (0, ["cancelled", "down", "returned"], "")


def test_a_start_that_fails_ends_the_program_with_its_error():
    """And no word of the background task that was never begun."""
    body = """
def hook():
    raise RuntimeError("no database")
server.on_startup(hook)
server.background(up())
"""
    with running(body) as program:
        status, lines, complaint = program.ended()

    assert (status, lines) == (1, [])
    assert "RuntimeError: no database" in complaint
    assert "never awaited" not in complaint


def test_a_server_that_was_shut_down_by_itself_ends_the_program():
    """Nothing is left that a signal could be waited for."""
    with running("server.background(lambda: server.hub.shutdown(timeout=1))") as program:
        program.line()

        assert program.ended() == (0, ["returned"], "")


def test_a_task_that_ignores_its_end_does_not_keep_the_process():
    """One that nobody owns, as a library may have begun it."""
    body = """
async def deaf():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say("no")

def hook():
    server.deaf = asyncio.create_task(deaf())
server.on_startup(hook)
"""
    with running(body) as program:
        program.line()
        program.signal(signal.SIGTERM)

        assert program.ended() == (0, ["no"], "")


def test_two_interrupts_within_a_moment_are_one():
    """A terminal's Ctrl-C goes to the whole group, and a shell in it may pass it on: the
    second comes while the first is drained for."""
    body = """
import os
async def last():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    say("closing")
server.on_shutdown(last)
"""
    with running(body) as program:
        program.line()
        program.signal(signal.SIGINT)

        assert program.ended() == (0, ["closing", "returned"], "")


def test_a_later_interrupt_ends_at_once():
    with running(
        "from eyewall.server import runner; runner.DEBOUNCE[signal.SIGINT] = 0" + HANGS
    ) as program:
        program.line()
        program.signal(signal.SIGINT)
        assert program.line() == "closing"

        program.signal(signal.SIGINT)

        assert program.ended() == (128 + signal.SIGINT, [], "")


def test_in_a_thread_it_runs_until_it_is_shut_down_and_leaves_signals_alone():
    body = """
import queue, threading
before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
loops = queue.Queue()
async def begun():
    loops.put(asyncio.get_running_loop())
server.background(begun)
thread = threading.Thread(target=server.run, kwargs={"port": 0})
thread.start()
loop = loops.get()
assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
assert thread.is_alive()
asyncio.run_coroutine_threadsafe(server.hub.shutdown(timeout=1), loop)
thread.join()
say("ended")
sys.exit()
"""
    with running(body) as program:
        status, lines, complaint = program.ended()

    assert (status, lines[-1:], complaint) == (0, ["ended"], "")


# --- what can't be run


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is in use."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening.getsockname()[1]


def test_a_port_that_is_in_use_ends_the_program_with_one_line(taken):
    """One that calls ``run()`` as its last line, as by ``eyewall serve``."""
    done = subprocess.run(
        [sys.executable, "-c", f"from eyewall import Server\nServer().run(port={taken})"],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"eyewall: port {taken} on 127.0.0.1 is in use; take another with port=\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no..name"])
def test_a_host_that_this_machine_has_not_is_told_likewise(host, capsys):
    """A program that wants to go on may: it is an exception."""
    with pytest.raises(SystemExit) as end:
        Server().run(host=host, port=0)

    assert end.value.code == 1
    assert capsys.readouterr().err == f"eyewall: {host} is not an address of this machine\n"


# pytest says of it what Python does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_in_a_thread_it_is_told_too(taken, capsys):
    """Where ``SystemExit`` ends the thread without a word of Python's."""
    thread = threading.Thread(target=Server().run, kwargs={"port": taken})
    thread.start()
    thread.join(WITHIN)

    assert not thread.is_alive()
    assert f"port {taken} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_what_a_hook_could_not_listen_on_is_a_fault_with_its_trace():
    """It is not the server's port, and the sentence would be wrong."""
    server = Server()

    @server.on_startup
    def hook() -> None:
        raise OSError(errno.EADDRINUSE, "the port of something else")

    with pytest.raises(OSError, match="the port of something else"):
        server.run(port=0)


async def test_a_loop_that_runs_already_is_told_with_what_to_do():
    """As in a notebook, where the first thing one tries is the README's last line."""
    with pytest.raises(RuntimeError, match=r"await server\.start\(port="):
        Server().run(port=0)


def test_run_always_listens():
    """A server that serves until a signal, and that nobody can reach, is no one's wish."""
    with pytest.raises(ValueError, match="port must be a whole number from 0 to 65535, not None"):
        Server().run(port=None)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_sentence_that_can_t_be_said_does_not_change_the_end(taken, monkeypatch, is_there):
    said = io.StringIO()
    said.close()
    monkeypatch.setattr(sys, "stderr", said if is_there else None)
    with pytest.raises(SystemExit) as end:
        Server().run(port=taken)

    assert end.value.code == 1
