"""How many descriptors there are, and what is said when they don't suffice."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from eyewall import Server
from eyewall.server.descriptors import LOG_INTERVAL, RESERVED, AcceptPauses, limit, warn_if_too_few
from eyewall.testing.logs import RecordingLogger
from tests.application.fakes import FakeClock


@pytest.fixture
def logger():
    return RecordingLogger()


def test_too_few_for_the_connections_that_may_come_is_said(logger):
    have = limit()
    assert have is not None

    warn_if_too_few(logger, None)
    warn_if_too_few(logger, have - RESERVED)
    assert logger.entries == []
    warn_if_too_few(logger, have)

    assert logger.fields("too_few_descriptors") == {
        "limit": have,
        "wanted": have + RESERVED,
        "max_connections": have,
    }


async def test_it_is_said_when_a_server_starts_in_whosever_process(logger):
    async with Server(logger=logger, max_connections=limit()):
        assert logger.of("warning") == ["too_few_descriptors"]


def run(program, *, soft):
    done = subprocess.run(
        ["sh", "-c", f'ulimit -S -n {soft}; exec "$0" "$@"', sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


PROGRAM = """
import resource
from eyewall import Server

server = Server()

async def end():
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
    await server.shutdown(0)

server.background(end)
{}
"""


def test_a_process_of_our_own_has_as_many_as_it_may():
    soft, hard = run(PROGRAM.format("server.run(port=0)"), soft=256)

    assert soft == hard != "256"


def test_in_the_process_of_somebody_else_the_limit_is_theirs():
    begin = """
import asyncio
async def main():
    await server.start()
    await server._ended.wait()
asyncio.run(main())
"""
    soft, _ = run(PROGRAM.format(begin), soft=256)

    assert soft == "256"


def test_of_a_shortage_that_goes_on_there_is_a_line_now_and_then(logger):
    clock = FakeClock()
    server = Server(logger=logger)
    shortage = AcceptPauses(server._node.parts.stats, logger, clock)
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for _ in range(int(LOG_INTERVAL)):
        shortage.paused(error)
        clock._now += 1
    shortage.paused(error)

    lines = [fields for _, event, fields in logger.entries if event == "accepting_paused"]
    assert [(line["reason"], line["pauses"]) for line in lines] == [
        ("EMFILE", 1),
        ("EMFILE", int(LOG_INTERVAL)),
    ]
    assert server.hub.stats().accept_pauses == int(LOG_INTERVAL) + 1


def test_what_can_t_be_written_is_dropped_and_the_stream_stays():
    """The reader of the log has gone; whoever stands in its place gets the next line."""
    program = """
import os, sys
from eyewall.server.descriptors import discard_unwritten_output

old, new = os.pipe(), os.pipe()
os.dup2(old[1], 2)
os.close(old[0])
try:
    print("lost", file=sys.stderr)
except OSError:
    pass
discard_unwritten_output()
os.dup2(new[1], 2)
print("next", file=sys.stderr)
print(os.read(new[0], 100).decode())
sys.stderr.close()
discard_unwritten_output()
sys.stderr = None
discard_unwritten_output()
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == ["next"]
