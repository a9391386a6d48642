"""The logger: structlog, set up for one server without its global configuration.

Rules of this file:

1. No secret is logged: a field with the name of a secret is masked at any depth, and so is text
   that looks like a token, in tracebacks too.
2. An event is one line in ``json``, and one line and its traceback in ``text``. Text from a
   client can't forge a line.
3. A traceback shows no local variables: they may be secrets.
4. A finalizer may log at any point of a program, also while its own thread writes a line. It
   must not deadlock, and its line must not be mixed with the other one: the lock is
   re-entrant, and the line is queued until the other one is complete.

``records`` writes what other libraries log in the same form.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.domain.identity import is_printable

MASK = "***"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
LEVELS |= {"warning": logging.WARNING, "error": logging.ERROR}

_SECRET_NAME = re.compile(
    r"token|authorization|passw|passphrase|cookie|secret|credential|api_?key|private_?key",
    re.IGNORECASE,
)
_SECRETS_IN_TEXT = (
    re.compile(r"(\b(?:bearer|basic)\s+)[^\s\"',;]+", re.IGNORECASE),
    re.compile(r"([?&](?:access_)?token=)[^\s&\"']+", re.IGNORECASE),
    re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"),  # the password of an address
)
_FIRST: Final = ("timestamp", "level", "event")
MAX_LATE_LINES: Final = 100
"""Lines of finalizers that are queued at most, while their thread writes a line."""
_MAX_DEPTH = 6  # deeper values are not shown: a structure may contain itself


def make_logger(kind: str = "text", level: str = "info", stream: TextIO | None = None) -> Logger:
    """Return a logger that writes to ``stream`` (standard error if None).

    ``kind`` is ``text`` for people or ``json`` for collectors. ``level`` is the lowest of
    ``debug``, ``info``, ``warning``, ``error`` that is written. Raises ``ValueError`` for another
    kind or level. In a process without a standard error nothing is written.

    >>> make_logger("json", stream=sys.stdout).info("joined", room="lab", token="abc")
    {"timestamp": ..., "level": "info", "event": "joined", "room": "lab", "token": "***"}
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    out: Any = sys.stderr if stream is None else stream
    if out is None:  # closed before the start of the process
        out = _Nowhere()
    renderers = _renderers(kind, out)
    output = Output(out, LEVELS[level], [*_PROCESSORS, redact, *renderers])
    return cast("Logger", output.logger(LEVELS[level]))


_PROCESSORS: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


class Output:
    """Writes the lines of a logger: structlog's innermost logger.

    ``level`` is the lowest level that is written, as a number of ``logging``.
    """

    def __init__(self, stream: TextIO, level: int, processors: list[Any]) -> None:
        self.level = level
        self._stream = stream
        self._processors = processors
        self._lock = threading.RLock()
        self._is_writing = False
        """Whether the thread that holds the lock is writing a line."""
        self._late: deque[str] = deque(maxlen=MAX_LATE_LINES)

    def logger(self, level: int) -> Any:
        """Return a logger that writes here, from ``level`` on."""
        kind = structlog.make_filtering_bound_logger(level)
        wrapped = structlog.wrap_logger(self, processors=self._processors, wrapper_class=kind)
        # Bound once. structlog's proxy would bind for every line.
        return wrapped.bind()

    def msg(self, line: str) -> None:
        """Write one line, or queue it if this thread is writing another."""
        with self._lock:
            if self._is_writing:
                self._late.append(line)
                return
            self._is_writing = True
            try:
                self._write(line)
                while self._late:
                    self._write(self._late.popleft())
            finally:
                self._is_writing = False

    debug = info = warning = error = critical = msg

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


def output_of(logger: object) -> Output | None:
    """Return the output of a logger from ``make_logger``; None for another logger."""
    found = getattr(logger, "_logger", None)
    return found if isinstance(found, Output) else None


class _Nowhere(io.TextIOBase):
    """A stream that discards everything."""

    def write(self, text: str) -> int:
        return len(text)


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask secrets: a processor for structlog."""
    for key, value in event.items():
        event[key] = MASK if _SECRET_NAME.search(key) else _masked(value, _MAX_DEPTH)
    return event


def _masked(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        for pattern in _SECRETS_IN_TEXT:
            value = pattern.sub(rf"\g<1>{MASK}", value)
        return value
    if isinstance(value, bytes):
        return _masked(value.decode("utf-8", "replace"), depth)
    if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        # The text of an object, such as an exception, may quote a secret.
        return value if isinstance(value, (int, float, type(None))) else _masked(told(value), depth)
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {
            str(key): MASK if _SECRET_NAME.search(str(key)) else _masked(found, depth - 1)
            for key, found in value.items()
        }
    return [_masked(found, depth - 1) for found in value]


def _one_line(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    text = str(event.get("event", ""))
    if not is_printable(text):
        event["event"] = repr(text)
    return event


def _in_order(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Put the fields of ``_FIRST`` first, so that lines align."""
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return first | dict(event)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # another kind of writer, or a closed one
        return False


def _renderers(kind: str, stream: TextIO) -> list[Any]:
    if kind == "json":
        return [_in_order, structlog.processors.JSONRenderer()]
    if kind != "text":
        raise ValueError(f"kind must be text or json, not {kind!r}")
    renderer = structlog.dev.ConsoleRenderer(
        colors=_is_terminal(stream),
        repr_native_str=True,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_one_line, renderer]
