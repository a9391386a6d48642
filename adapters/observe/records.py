"""Writes the records of other libraries (Tornado, asyncio, the standard library) as log lines.

It is for a process that belongs to the server. If the application has set up logging, it has no
effect. Rules of this file:

1. The handler replaces ``logging.lastResort``, which gets a record only if no other handler
   does. An application that configures logging later gets its own lines only, and has no handler
   to remove.
2. A hook of the process is replaced only if it is Python's own. The last server that ends
   restores it, unless the application has replaced it meanwhile.
3. A record that can't be written is lost, without any other effect.
4. The handler has no lock. A thread that writes a line may be interrupted by a finalizer that
   logs a record; with a second lock, two threads could deadlock.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

from eyewall.adapters.observe.logs import Output, output_of
from eyewall.application.ports.logging import shown

_KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# These names are private to Python. A hook without one is not replaced.
_LAST_RESORT: Final = getattr(logging, "_defaultLastResort", None)
_SHOW_WARNING: Final = getattr(warnings, "_showwarning_orig", None)
_RESERVED: Final = frozenset(
    {"self", "event", "level", "timestamp", "logger", "exception", "stack"}
)
"""Names of the line's own fields, which a record's fields can't have."""


@contextmanager
def written_as(logger: object, *, sets_level: bool = True) -> Iterator[None]:
    """Write the records, warnings and uncaught exceptions of this process as ``logger`` writes
    its lines, at its level, unless the application has set up logging.

    ``logger`` is one of ``make_logger``; any other has no effect. Without ``sets_level``, records
    below ``warning`` are not written, which is Python's default: the application may still
    configure logging.
    """
    output = output_of(logger)
    if output is None or logging.getLogger().handlers:
        yield
        return
    _PROCESS.add(output, sets_level=sets_level)
    try:
        yield
    finally:
        _PROCESS.remove(output)


class _LastResort(logging.Handler):
    """Writes records to the output that was added last."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Output] = []

    def createLock(self) -> None:  # noqa: N802  (logging's own name)
        """Create no lock (rule 4)."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record without a lock."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Never raises."""
        outputs = self.outputs
        if not outputs:  # from a thread that found this handler just before it was replaced
            if _LAST_RESORT is not None and record.levelno >= _LAST_RESORT.level:
                _LAST_RESORT.handle(record)
            return
        output = outputs[-1]
        if record.levelno < output.level:
            return
        write = output.logger(logging.NOTSET)
        try:
            text, fields = record.getMessage(), _fields(record)
        except BaseException as error:  # noqa: BLE001  (arguments that don't fit, an object's __str__)
            text = "log_record_failed"
            fields = {
                "logger": record.name,
                "template": record.msg if isinstance(record.msg, str) else shown(record.msg),
                "error": shown(error),
            }
        with suppress(BaseException):  # a stream that is closed, or full
            # Bound, because keywords of the call could clash with its own arguments.
            getattr(write.bind(**fields), _level(record.levelno))(text)


def _level(number: int) -> str:
    if number >= logging.CRITICAL:
        return "critical"
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: value
        for name, value in vars(record).items()
        if name not in _KNOWN and name not in _RESERVED
    }
    fields["logger"] = record.name
    if record.exc_info and record.exc_info[0] is not None:
        fields["exc_info"] = record.exc_info
    elif record.exc_text:
        fields["exception"] = record.exc_text
    if record.stack_info:
        fields["stack"] = record.stack_info
    return fields


# --- hooks for warnings and for exceptions that are not caught: each logs a record


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """``warnings.showwarning``."""
    if file is not None:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
        return
    where = {"category": category.__name__, "where": f"{filename}:{lineno}"}
    logging.getLogger("py.warnings").warning("%s", message, extra=where)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """``threading.excepthook``."""
    error = args.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    name = args.thread.name if args.thread is not None else threading.get_ident()
    raised = (type(error), error, args.exc_traceback)
    logging.getLogger("threading").error("exception in thread %s", name, exc_info=raised)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    """``sys.unraisablehook``: of finalizers."""
    error = args.exc_value
    raised = None if error is None else (type(error), error, args.exc_traceback)
    what = args.err_msg or "exception ignored in"
    logging.getLogger("sys").error("%s %s", what, shown(args.object), exc_info=raised)


class _Process:
    """The hooks of the process, which are replaced while a server writes its lines."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._handler = _LastResort()
        self._hooks: tuple[tuple[Any, str, Any, Any], ...] = (
            (logging, "lastResort", _LAST_RESORT, self._handler),
            (warnings, "showwarning", _SHOW_WARNING, _warned),
            (threading, "excepthook", threading.__excepthook__, _thread_failed),
            (sys, "unraisablehook", sys.__unraisablehook__, _unraisable),
        )
        """The owner of each hook, its name, Python's own, and the replacement."""
        self._leading: list[Output] = []
        """The outputs that set the level."""
        self._level: int | None = None
        """The level that was set on the root logger here."""

    def add(self, output: Output, *, sets_level: bool) -> None:
        with self._lock:
            if not self._handler.outputs:
                self._replace_hooks()
            self._handler.outputs = [*self._handler.outputs, output]
            if sets_level:
                self._leading.append(output)
                self._set_level()

    def remove(self, output: Output) -> None:
        with self._lock:
            outputs = self._handler.outputs.copy()
            outputs.remove(output)
            if output in self._leading:
                self._leading.remove(output)
                self._set_level()
            self._handler.outputs = outputs
            if not outputs:
                self._replace_hooks(restore=True)

    def _replace_hooks(self, *, restore: bool = False) -> None:
        for owner, name, original, replacement in self._hooks:
            old, new = (replacement, original) if restore else (original, replacement)
            if old is not None and getattr(owner, name) is old:
                setattr(owner, name, new)

    def _set_level(self) -> None:
        """Set the root logger to the level of the newest output, unless the application has set
        one."""
        root = logging.getLogger()
        if root.level != (logging.WARNING if self._level is None else self._level):
            self._level = None
        elif self._leading:
            self._level = self._leading[-1].level
            root.setLevel(self._level)
        elif self._level is not None:
            self._level = None
            root.setLevel(logging.WARNING)


_PROCESS: Final = _Process()
