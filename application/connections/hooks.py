"""The application's hooks on connections, raw messages, errors and rooms.

Hooks may be plain or ``async``. If a connect hook has run for a connection, the disconnect
hooks run for it once.
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
    """The events that hooks are registered for."""

    CONNECT = auto()
    DISCONNECT = auto()
    MESSAGE = auto()
    ERROR = auto()
    JOIN = auto()
    LEAVE = auto()


MESSAGE: Final = Event.MESSAGE
"""A module-level name for the hot path: looking up an enum member costs more than a call."""


class Hooks:
    """Lists of hooks by event, run in the order in which they were added."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._of: dict[Event, tuple[Callable[..., Any], ...]] = dict.fromkeys(Event, ())

    def add(self, event: Event, hook: F) -> F:
        """Register a hook; returns it, so that this works as a decorator.

        Raises ``ValueError`` if it is not callable.
        """
        if not callable(hook):
            raise ValueError(f"a hook must be callable, not {hook!r:.80}")
        self._of[event] = (*self._of[event], hook)
        return hook

    def remove(self, hook: Callable[..., Any]) -> bool:
        """Remove a hook from all events; False if it was not registered."""
        found = False
        for event, hooks in self._of.items():
            if hook in hooks:
                self._of[event] = tuple(h for h in hooks if h != hook)
                found = True
        return found

    def adopt(self, other: Hooks) -> None:
        """Add the hooks that ``other`` has now."""
        self._of = {event: (*own, *other.of(event)) for event, own in self._of.items()}

    def of(self, event: Event) -> tuple[Callable[..., Any], ...]:
        """Return the hooks of ``event``, in the order of their registration."""
        return self._of[event]

    async def ask(self, event: Event, *args: Any) -> None:
        """Run the hooks of ``event``; raises the first error of one, which may refuse."""
        for hook in self._of[event]:
            result = hook(*args)
            if inspect.isawaitable(result):
                await result

    async def tell(self, event: Event, *args: Any) -> None:
        """Run the hooks of ``event``; errors are logged and have no other effect."""
        for hook in self._of[event]:
            try:
                result = hook(*args)
                if inspect.isawaitable(result):
                    await result
            except BaseException as error:
                # An observer's error has no effect: only the cancellation of this task is
                # re-raised.
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
