"""What other libraries log (Tornado, asyncio, the standard library), in our own form of lines.

It is for a process that belongs to the server: it has no effect where the application has set
up logging. Rules of this file:

1. Our handler takes the place of ``logging.lastResort``, which gets a record only if no other
   handler does. An application that configures logging later gets its own lines and none of
   ours, and finds no handler that it would have to remove.
2. A hook of the process is replaced only where it is Python's own. The last server that ends
   restores it, unless the application has replaced it meanwhile.
3. A record that can't be written is lost, and nothing else is.
4. The handler has no lock of its own. A thread that writes a line may be interrupted by a
   finalizer that logs a record: with a second lock, two threads could wait for each other.
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
# They have no public name. Where they have none at all, nothing is exchanged.
_LAST_RESORT: Final = getattr(logging, "_defaultLastResort", None)
_SHOW_WARNING: Final = getattr(warnings, "_showwarning_orig", None)
_TAKEN: Final = frozenset({"self", "event", "level", "timestamp", "logger", "exception", "stack"})
"""Names that a record's own fields must not have: they are the line's."""


@contextmanager
def written_as(logger: object, *, sets_level: bool = True) -> Iterator[None]:
    """Have everything that is logged, warned of or raised unseen in this process written as
    ``logger`` writes, at its level, unless the application has set up logging itself.

    ``logger`` is one of ``make_logger``; another one changes nothing. Without ``sets_level``
    records below ``warning`` stay unwritten, as Python has it: for as long as an application
    may still say itself what it wants.
    """
    output = output_of(logger)
    if output is None or logging.getLogger().handlers:
        yield
        return
    _PROCESS.enter(output, sets_level=sets_level)
    try:
        yield
    finally:
        _PROCESS.leave(output)


class _LastResort(logging.Handler):
    """Writes records to the output that was entered last."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Output] = []

    def createLock(self) -> None:  # noqa: N802  (logging's own name)
        """Have none (rule 4)."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record without a lock."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Never raises."""
        outputs = self.outputs
        if not outputs:  # of a thread that found this handler just before it was taken out
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
            # Bound, and not given to the call, whose own arguments have names too.
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
        if name not in _KNOWN and name not in _TAKEN
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
    """What is exchanged in the process while a server writes its lines."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._handler = _LastResort()
        self._hooks: tuple[tuple[Any, str, Any, Any], ...] = (
            (logging, "lastResort", _LAST_RESORT, self._handler),
            (warnings, "showwarning", _SHOW_WARNING, _warned),
            (threading, "excepthook", threading.__excepthook__, _thread_failed),
            (sys, "unraisablehook", sys.__unraisablehook__, _unraisable),
        )
        """Where a hook is, its name, Python's own, and ours."""
        self._leading: list[Output] = []
        """Those that set the level."""
        self._level: int | None = None
        """The level that the root logger was given here."""

    def enter(self, output: Output, *, sets_level: bool) -> None:
        with self._lock:
            if not self._handler.outputs:
                self._exchange(back=False)
            self._handler.outputs = [*self._handler.outputs, output]
            if sets_level:
                self._leading.append(output)
                self._set_level()

    def leave(self, output: Output) -> None:
        with self._lock:
            outputs = self._handler.outputs.copy()
            outputs.remove(output)
            if output in self._leading:
                self._leading.remove(output)
                self._set_level()
            self._handler.outputs = outputs
            if not outputs:
                self._exchange(back=True)

    def _exchange(self, *, back: bool) -> None:
        for owner, name, python_s, ours in self._hooks:
            old, new = (ours, python_s) if back else (python_s, ours)
            if old is not None and getattr(owner, name) is old:
                setattr(owner, name, new)

    def _set_level(self) -> None:
        """Let through what the newest output wants; what the application has said stays."""
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
