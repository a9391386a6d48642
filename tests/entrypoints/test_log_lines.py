"""All that a server's process logs looks alike, whoever logs it.

Each test is a process of its own: what is looked at belongs to the whole of one.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.entrypoints.test_cli import PATIENCE, certificate, environment

NOISY = """
import asyncio, contextlib, gc, json, logging, os, ssl, threading, warnings
import tornado.web
from tornado.httpclient import AsyncHTTPClient
from eyewall import Server

logging.getLogger("early").warning("while it is imported")
server = Server.from_settings()


class Boom(tornado.web.RequestHandler):
    def get(self):
        raise RuntimeError("boom")


class Bad:
    def __del__(self):
        raise ValueError("a finalizer")


async def records():
    log = logging.getLogger("mine")
    log.debug("debugged")
    log.info("informed")
    log.warning("%s", "two\\nlines")
    fields = {"room": "lab", "password": "hunter2", "event": "none", "method_name": "pay"}
    log.critical("worst", extra=fields)
    log.error("Bearer hunter2")
    log.warning("%d", "no number")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("caught", stack_info=True)


async def the_unseen():
    async def fail():
        raise LookupError("nobody asks")

    task = asyncio.ensure_future(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
    worker = threading.Thread(target=lambda: 1 / 0, name="worker")
    worker.start()
    worker.join()
    Bad()
    gc.collect()
    warnings.warn("old\\nways", DeprecationWarning)
    asyncio.get_running_loop().call_exception_handler({"message": "the loop's own"})


async def pages():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["CERT"], os.environ["KEY"])
    ports = []
    for options in ({}, {"ssl_options": context}):
        http = tornado.web.Application([("/boom", Boom)]).listen(0, "127.0.0.1", **options)
        ports.append(next(iter(http._sockets.values())).getsockname()[1])
    for path in ("/boom?token=hunter2", "/nowhere"):
        await AsyncHTTPClient().fetch(f"http://127.0.0.1:{ports[0]}{path}", raise_error=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[1])
    writer.write(b"no handshake at all" * 10)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


@server.on_startup
async def noise():
    for part in (records, the_unseen, pages):
        await part()


server.background(server.shutdown)

if __name__ == "__main__":
    server.run(port=0)
"""

WAYS = {
    "serve": ("-m", "eyewall", "serve", "app:server", "--port", "0"),
    "run": ("app.py",),
}


class Run:
    """A program that has run as ``app``, and what it has written."""

    def __init__(self, folder: Path, program: str, way: str = "serve", **variables: str) -> None:
        cert, key = certificate(folder, "here")
        (folder / "app.py").write_text(program)
        self.done = subprocess.run(
            [sys.executable, *WAYS[way]],
            cwd=folder,
            env=environment(CERT=cert, KEY=key, PYTHONWARNINGS="default", **variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.status = self.done.returncode
        self.text = self.done.stderr
        self.lines = self.text.splitlines()

    def entries(self, event: str) -> list[dict[str, Any]]:
        """The objects whose event begins so."""
        found = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [entry for entry in found if entry["event"].startswith(event)]

    def entry(self, event: str) -> dict[str, Any]:
        [found] = self.entries(event)
        return found


@pytest.fixture
def run(tmp_path):
    """A function that runs a program, and returns how that went."""
    return functools.partial(Run, tmp_path)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """What ``eyewall serve`` has written, as JSON, when everything was logged."""
    return Run(tmp_path_factory.mktemp("noisy"), NOISY, EYEWALL_LOGGING__KIND="json")


def test_as_json_each_line_is_an_object(noisy):
    assert noisy.status == 0, noisy.text
    assert len(noisy.entries("")) == len(noisy.lines)
    assert all({"event", "level", "timestamp"} <= line.keys() for line in noisy.entries(""))
    assert "hunter2" not in noisy.text


def test_what_others_log_has_their_name_and_its_level(noisy):
    early = noisy.entry("while it is imported")
    assert (early["logger"], early["level"]) == ("early", "warning")
    assert noisy.entry("two\nlines")["logger"] == "mine"
    assert noisy.entry("informed")["level"] == "info"
    assert noisy.entries("debugged") == []
    worst = noisy.entry("worst")
    assert (worst["level"], worst["room"], worst["password"]) == ("critical", "lab", "***")
    assert worst["method_name"] == "pay", "a name that structlog has for itself"
    assert noisy.entry("Bearer ***")
    broken = noisy.entry("log_record_failed")
    assert (broken["template"], broken["logger"]) == ("%d", "mine")
    caught = noisy.entry("caught")
    assert "ZeroDivisionError" in caught["exception"]
    assert "Stack (most recent call last)" in caught["stack"]


def test_what_nobody_has_seen_is_told_too(noisy):
    task = noisy.entry("Task exception was never retrieved")
    assert (task["logger"], task["level"]) == ("asyncio", "error")
    assert "LookupError: nobody asks" in task["exception"]
    assert "ZeroDivisionError" in noisy.entry("exception in thread worker")["exception"]
    assert "a finalizer" in noisy.entry("exception ignored")["exception"]
    warned = noisy.entry("old\nways")
    assert (warned["category"], warned["logger"]) == ("DeprecationWarning", "py.warnings")
    assert warned["where"].rpartition("/")[2].startswith("app.py:")
    assert noisy.entry("the loop's own")


def test_so_are_the_lines_of_tornado(noisy):
    failed = noisy.entry("Uncaught exception GET /boom?token=***")
    assert "RuntimeError: boom" in failed["exception"]
    assert noisy.entry("500 GET /boom?token=***")["logger"] == "tornado.access"
    assert noisy.entry("404 GET /nowhere")["level"] == "warning"
    assert noisy.entry("SSL Error on")["logger"] == "tornado.general"


def test_as_text_an_entry_is_a_line_but_for_its_traceback(run):
    """Of a program that runs its server itself, too."""
    ran = run(NOISY, "run")

    [forged] = [line for line in ran.lines if "two" in line]
    assert r"'two\nlines'" in forged
    assert "[warning  ]" in forged
    assert forged.endswith("[mine]")
    assert [line for line in ran.lines if "[tornado.access]" in line and "404" in line]
    assert "--- Logging error ---" not in ran.lines
    assert "hunter2" not in ran.text


OWN_HANDLER = """
import logging, sys
handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(logging.Formatter("MINE %(message)s"))
logging.getLogger("early").addHandler(handler)
"""


def test_the_level_holds_for_all(run):
    """And what another handler has written is not written once more."""
    ran = run(OWN_HANDLER + NOISY, EYEWALL_LOGGING__KIND="json", EYEWALL_LOGGING__LEVEL="debug")
    assert ran.entry("debugged")["level"] == "debug"
    assert ran.text.count("while it is imported") == 1
    assert "MINE while it is imported" in ran.lines

    ran = run(NOISY, EYEWALL_LOGGING__KIND="json", EYEWALL_LOGGING__LEVEL="error")
    assert {entry["level"] for entry in ran.entries("")} == {"error", "critical"}


OWN = """
import logging
logging.basicConfig(format="MINE %(name)s %(levelname)s %(message)s")
"""


def test_an_application_that_logs_by_itself_has_its_own_lines(run):
    """Neither their form nor their level is ours, although the server is."""
    ran = run(OWN + NOISY, EYEWALL_LOGGING__KIND="json")

    assert "MINE mine CRITICAL worst" in ran.lines
    assert any(line.startswith("MINE tornado.access WARNING 404") for line in ran.lines)
    assert "informed" not in ran.text
    assert [entry["event"] for entry in ran.entries("")] == ["listening", "stopped"]


HOOKS = """
import asyncio, io, logging, sys, threading, warnings
from eyewall import Server
from eyewall.adapters.observe.logs import make_logger
from eyewall.adapters.observe.records import written_as

class Own:
    def debug(self, event, **fields): pass
    info = warning = error = debug

def own(*args): pass

def hooks():
    root = logging.getLogger()
    exchanged = [logging.lastResort, warnings.showwarning, threading.excepthook, sys.unraisablehook]
    return [*exchanged, root.level, root.handlers.copy()]

def changed(before):
    return [a != b for a, b in zip(hooks(), before)]

def meanwhile(**options):
    found, before, server = [], hooks(), Server(**options)
    server.on_startup(lambda: found.append(changed(before)))
    server.background(server.shutdown)
    for life in range(2):
        server.run(port=0)
        assert hooks() == before
    assert found[0] == found[1]
    return found[0]

async def embedded():
    before = hooks()
    async with Server():
        assert hooks() == before
    server = Server()
    await server.start(port=0)
    assert hooks() == before
    await server.shutdown()

def overlapping():
    # Of two servers in threads, the one that began first may end first.
    before = hooks()
    streams = io.StringIO(), io.StringIO()
    first = written_as(make_logger("json", "error", streams[0]))
    second = written_as(make_logger("json", "debug", streams[1]))
    first.__enter__()
    second.__enter__()
    logging.getLogger("x").info("to the second")
    first.__exit__(None, None, None)
    logging.getLogger("x").debug("still to the second")
    second.__exit__(None, None, None)
    assert hooks() == before
    assert [len(stream.getvalue().splitlines()) for stream in streams] == [0, 2]

asyncio.run(embedded())
assert meanwhile() == [True, True, True, True, True, False]
assert meanwhile(logger=Own()) == [False] * 6
overlapping()
logging.getLogger().setLevel(logging.ERROR)
assert meanwhile() == [True, True, True, True, False, False]
threading.excepthook = warnings.showwarning = sys.unraisablehook = own
assert meanwhile() == [True, False, False, False, False, False]
logging.getLogger().addHandler(logging.NullHandler())
assert meanwhile() == [False] * 6
print("fine")
"""


def test_what_the_application_has_set_up_stays_and_all_is_as_it_was_afterwards(run):
    """Its logger, its hooks, its level, its handlers; a server within an application of
    somebody else touches nothing at all."""
    ran = run(HOOKS, "run")

    assert (ran.done.stdout, ran.status) == ("fine\n", 0), ran.text


CROSSED = """
import io, logging, threading
from eyewall.adapters.observe.logs import make_logger
from eyewall.adapters.observe.records import written_as

class Slow:
    # The text of a record that another thread logs meanwhile.
    def __str__(self):
        begun.set()
        return "by another thread"

class Stream(io.StringIO):
    # A finalizer runs while a line is written.
    def write(self, text):
        if "a line" in text:
            other.start()
            begun.wait()
            logging.getLogger("sys").error("a finalizer")
        return super().write(text)

begun, stream = threading.Event(), Stream()
other = threading.Thread(target=lambda: logging.getLogger("x").error(Slow()), daemon=True)
log = make_logger("json", "info", stream)
with written_as(log):
    ours = logging.lastResort
    log.info("a line")
    other.join()
assert len(stream.getvalue().splitlines()) == 3, stream.getvalue()
late = logging.makeLogRecord({"msg": "too late", "levelno": logging.ERROR})
ours.handle(late)  # as a thread does that has looked it up before
ours.handle(logging.makeLogRecord({"msg": "too late, and not wanted", "levelno": logging.INFO}))
print("fine")
"""


def test_a_thread_that_logs_waits_for_no_lock_while_a_line_is_written(run):
    """And what is logged when the last server has just ended is written as Python does."""
    ran = run(CROSSED, "run")

    assert (ran.done.stdout, ran.text, ran.status) == ("fine\n", "too late\n", 0)


FAILS = """
from eyewall import Server
server = Server.from_settings()

@server.on_startup
async def no():
    raise RuntimeError("no\\nway")
"""


def test_a_start_that_fails_is_a_line_as_well(run):
    ran = run(FAILS, EYEWALL_LOGGING__KIND="json")

    assert ran.status == 1
    assert len(ran.entries("")) == len(ran.lines)
    assert "RuntimeError: no\nway" in ran.entry("serve_failed")["exception"]
