"""Log lines: their form, and what must never be in one."""

from __future__ import annotations

import io
import json
import sys
import threading
from contextlib import contextmanager

import pytest
import structlog

from eyewall.adapters.observe.logs import Output, make_logger


class Log:
    """A logger and what it has written."""

    def __init__(self, kind: str, level: str = "info") -> None:
        self.stream = io.StringIO()
        self.logger = make_logger(kind, level, self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]


def test_json_is_one_object_to_a_line():
    log = Log("json")
    log.logger.info("joined", room="lab", members=3)
    log.logger.error("two\nlines")

    first, second = log.records

    assert (first["event"], first["level"], first["room"], first["members"]) == (
        "joined",
        "info",
        "lab",
        3,
    )
    assert list(first) == ["timestamp", "level", "event", "room", "members"]
    assert first["timestamp"].endswith("Z")
    assert second["event"] == "two\nlines"


def test_text_has_the_event_and_its_fields():
    log = Log("text")
    log.logger.warning("joined", room="lab")

    assert "warning" in log.text
    assert "joined" in log.text
    assert "room='lab'" in log.text
    assert "\x1b" not in log.text  # no colours where there is no terminal


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_client_can_not_forge_a_line(kind):
    log = Log(kind)
    log.logger.info("refused\nforged", topic="a\nforged\x1b[2J", more={"x": "y\nforged"})

    assert len(log.text.splitlines()) == 1
    assert "\x1b" not in log.text


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_less_than_the_level_is_not_written(level):
    log = Log("json", level)
    order = ["debug", "info", "warning", "error"]
    for name in order:
        getattr(log.logger, name)("x")

    assert [record["level"] for record in log.records] == order[order.index(level) :]


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        {"token": "hunter2"},
        {"access_token": "hunter2"},
        {"Authorization": "Basic hunter2"},
        {"password": "hunter2"},
        {"cookie": "hunter2"},
        {"client_secret": "hunter2"},
        {"api_key": "hunter2"},
        {"headers": {"Authorization": "Bearer hunter2", "cookie": "hunter2"}},
        {"deep": [{"more": ({"token": "hunter2"},)}]},
        {"header": "Bearer hunter2"},
        {"header": b"Bearer hunter2"},
        {"url": "ws://host/ws?token=hunter2&x=1"},
        {"url": "ws://host/ws?x=1&access_token=hunter2"},
        {"url": "redis://user:hunter2@host:6379/0"},
        {"error": ValueError("bad header: Bearer hunter2")},
    ],
)
def test_no_secret_is_written(kind, fields):
    log = Log(kind)
    log.logger.info("handshake", **fields)

    assert "handshake" in log.text
    assert "hunter2" not in log.text
    assert "***" in log.text


def test_what_is_not_secret_stays():
    log = Log("json")
    log.logger.info("x", url="http://host:8080/path?page=2", user="ada", count=1, none=None)

    assert log.records[0]["url"] == "http://host:8080/path?page=2"
    assert (log.records[0]["user"], log.records[0]["count"], log.records[0]["none"]) == (
        "ada",
        1,
        None,
    )


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_traceback_has_no_local_variables_and_no_secrets(kind):
    log = Log(kind)
    password = "hunter2"  # noqa: F841  (it is what must not be seen)
    try:
        raise ValueError("Bearer hunter3")
    except ValueError:
        log.logger.error("failed", exc_info=True)

    assert "ValueError" in log.text
    assert "test_a_traceback" in log.text
    assert "hunter2" not in log.text.replace('password = "hunter2"', "")
    assert "Bearer ***" in log.text.replace('raise ValueError("Bearer', "")


def test_a_structure_that_holds_itself_does_not_break_logging():
    log = Log("json")
    loop: dict = {}
    loop["loop"] = loop
    log.logger.info("x", loop=loop)

    assert len(log.records) == 1


def test_what_json_does_not_know_is_written_as_text():
    log = Log("json")
    log.logger.info("x", ids={"one"}, kind=ValueError, surrogate="\ud800")

    assert log.records[0]["ids"] == ["one"]


def test_structlog_s_own_configuration_is_left_alone():
    """A program that uses structlog keeps its own set-up beside ours."""
    before = structlog.get_config()
    Log("json").logger.info("x")

    assert structlog.get_config() == before
    assert not structlog.is_configured()


@pytest.mark.parametrize(("kind", "level"), [("xml", "info"), ("text", "loud")])
def test_another_kind_or_level_is_told_where_it_is_built(kind, level):
    with pytest.raises(ValueError, match="must be"):
        make_logger(kind, level)


def test_standard_error_is_the_default(capsys):
    make_logger("json").info("hello")

    assert "hello" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_is_logged_while_a_line_is_written_comes_behind_it(kind):
    """By a finalizer, say, which may run at any place: its own thread must not wait for
    itself, and neither line stands in the other."""

    class Stream(io.StringIO):
        def write(self, text):
            if "first" in text:
                log.info("second", n=1)
                log.info("third", n=2)
            return super().write(text)

    stream = Stream()
    log = make_logger(kind, "info", stream)
    log.info("first")
    log.info("fourth")

    lines = stream.getvalue().splitlines()
    found = [word for line in lines for word in WORDS if word in line]
    assert (len(lines), found) == (4, WORDS)


WORDS = ["first", "second", "third", "fourth"]


@contextmanager
def interrupted(function, what):
    """Have ``what`` called once before each instruction of ``function`` in this thread, as the
    collector may call a finalizer."""
    seen = set()

    def at_instruction(frame, event, _arg):
        if event == "opcode" and frame.f_lasti not in seen:
            seen.add(frame.f_lasti)
            what()
        return at_instruction

    def at_call(frame, _event, _arg):
        if frame.f_code is not function.__code__:
            return None
        frame.f_trace_opcodes = True
        return at_instruction

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_finalizer_may_log_at_every_point_of_writing_a_line():
    log, done = Log("json"), threading.Event()

    def write():
        with interrupted(Output.msg, lambda: log.logger.info("a finalizer")):
            log.logger.info("a line")
        done.set()

    threading.Thread(target=write, daemon=True).start()

    assert done.wait(10), "the thread waits for itself"
    events = [record["event"] for record in log.records]
    assert events.count("a line") == 1
    assert events.count("a finalizer") > 10


def test_lines_of_many_threads_stay_whole():
    log = Log("json")
    begin = threading.Barrier(4)

    def write(number):
        begin.wait()
        for n in range(50):
            log.logger.info(f"{number}:{n}", padding="x" * 200)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({record["event"] for record in log.records}) == 200


def test_a_stream_that_fails_is_no_end_of_the_lines():
    class Stream(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Stream()
    log = make_logger("json", "info", stream)
    with pytest.raises(OSError, match="No space"):
        log.info("lost")
    stream.full = False
    log.info("written")

    assert "written" in stream.getvalue()
