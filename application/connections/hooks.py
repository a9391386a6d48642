"""What users want to hear of: connections, raw messages, errors, rooms.

Hooks may be plain or ``async``. Lifecycle hooks come in pairs: who saw the connect
sees the disconnect, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any, Final, TypeVar

from eyewall.application.concurrency.tasks import is_end
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger

F = TypeVar("F", bound=Callable[..., Any])


class Event(IntEnum):
    CONNECT = auto()
    DISCONNECT = auto()
    MESSAGE = auto()
    ERROR = auto()
    JOIN = auto()
    LEAVE = auto()


MESSAGE: Final = Event.MESSAGE
"""By a name of its own, for who asks for it with every message: the look-up of a member
in its enum costs more than a call."""


class Hooks:
    """Lists of hooks by event, run in the order in which they were added."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._of: dict[Event, tuple[Callable[..., Any], ...]] = dict.fromkeys(Event, ())

    def add(self, event: Event, hook: F) -> F:
        """Register a hook; returns it, so that this works as a decorator."""
        if not callable(hook):
            raise ValueError(f"a hook must be callable, not {hook!r:.80}")
        self._of[event] = (*self._of[event], hook)
        return hook

    def remove(self, hook: Callable[..., Any]) -> bool:
        """Take a hook back from wherever it is registered."""
        found = False
        for event, hooks in self._of.items():
            if hook in hooks:
                self._of[event] = tuple(h for h in hooks if h != hook)
                found = True
        return found

    def adopt(self, other: Hooks) -> None:
        """Take over the hooks that ``other`` has now."""
        self._of = {event: (*own, *other.of(event)) for event, own in self._of.items()}

    def of(self, event: Event) -> tuple[Callable[..., Any], ...]:
        return self._of[event]

    async def ask(self, event: Event, *args: Any) -> None:
        """Run the hooks of ``event``; what one raises goes to the caller."""
        for hook in self._of[event]:
            result = hook(*args)
            if inspect.isawaitable(result):
                await result

    async def tell(self, event: Event, *args: Any) -> None:
        """Run the hooks of ``event``; one that raises is logged and changes nothing."""
        for hook in self._of[event]:
            try:
                result = hook(*args)
                if inspect.isawaitable(result):
                    await result
            except BaseException as error:
                # A watcher can't break what it watches: only the end of this very task
                # is passed on.
                if is_end(error):
                    raise
                self._logger.error(
                    "hook_failed",
                    hook=_name(hook),
                    on=event.name.lower(),
                    error=shown(error),
                    exc_info=error,
                )


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", None) or type(hook).__qualname__
