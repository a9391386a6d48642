"""Log lines that can't harm."""

from __future__ import annotations

import asyncio

import pytest

from eyewall.application.ports.logging import GuardedLogger, guarded, shown, told
from tests.application.fakes import RecordingLogger

LEVELS = ("debug", "info", "warning", "error")


class Broken:
    """A logger that raises what it was given."""

    def __init__(self, error):
        self.error_to_raise = error

    def _raise(self, event, **fields):
        raise self.error_to_raise

    debug = info = warning = error = _raise


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError("I/O operation on closed file"),
        BrokenPipeError(),
        asyncio.CancelledError(),
        SystemExit(1),
        GeneratorExit(),
        RecursionError(),
    ],
    ids=repr,
)
def test_whatever_a_logger_raises_ends_with_the_call(level, error):
    getattr(guarded(Broken(error)), level)("event", field=1)


def test_a_logger_without_a_method_loses_those_lines_only():
    logger = RecordingLogger()
    kept = guarded(type("Half", (), {"error": logger.error})())

    kept.debug("event")
    kept.error("fault", n=1)

    assert logger.entries == [("error", "fault", {"n": 1})]


def test_what_a_logger_takes_it_gets():
    logger = RecordingLogger()

    for level in LEVELS:
        getattr(guarded(logger), level)("event", level_of=level)

    assert logger.entries == [(level, "event", {"level_of": level}) for level in LEVELS]


def test_a_guard_needs_no_guard():
    once = guarded(RecordingLogger())

    assert isinstance(once, GuardedLogger)
    assert guarded(once) is once


class Shy(Exception):
    def __str__(self):
        raise SystemExit("no")

    __repr__ = __str__


class Wordless(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307

    __repr__ = __str__


@pytest.mark.parametrize("kind", [Shy, Wordless])
def test_an_error_that_has_no_text_is_told_by_its_type(kind):
    assert kind.__name__ in shown(kind())
    assert kind.__name__ in told(kind())


def test_any_other_error_is_told_as_python_does():
    assert shown(ValueError("no")) == "ValueError('no')"
    assert told(ValueError("no")) == "no"
