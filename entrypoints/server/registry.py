"""The registrations of an application with its server, and the runtime that gets them.

The test kit overrides the runtime of a server for the time of a test: calls on the server and its
hub then reach the runtime of the test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from eyewall.application.concurrency.tasks import is_end
from eyewall.application.hub.hub import Hub
from eyewall.application.node import Node
from eyewall.application.ports.logging import shown
from eyewall.server.background import Background, call

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """What executes the calls on a server and its hub."""

    node: Node
    background: Background
    stop: Callable[[float], Awaitable[None]]
    """Drains and stops, within so many seconds."""


class Registry:
    """The hub of a server, its hooks, and its runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.hub: Hub = runtime.node.hub
        self.runtime = runtime
        """The server's own runtime."""
        self.startup: list[Hook] = []
        self.shutdown: list[Hook] = []
        self._overrides: list[Runtime] = []
        self._attach_hub()

    @property
    def current(self) -> Runtime:
        """The runtime that calls reach now: the newest override, else the server's own."""
        return self._overrides[-1] if self._overrides else self.runtime

    def attach(self, runtime: Runtime) -> None:
        """Make ``runtime`` the server's own."""
        self.runtime = runtime
        self._attach_hub()

    async def call_startup_hooks(self) -> None:
        """Call the startup hooks in order; raises the first error.

        ``SystemExit`` and the like are raised as ``RuntimeError``; a cancellation of the start is
        raised as it is.
        """
        for hook in self.startup:
            try:
                await call(hook)
            except Exception:
                raise
            except BaseException as error:
                if is_end(error):
                    raise
                raise RuntimeError(f"a startup hook raised {shown(error)}") from error

    # --- for the test kit

    def adopt(self, other: Registry) -> None:
        """Copy what the application has registered with ``other`` so far."""
        self.runtime.node.adopt(other.runtime.node)
        self.runtime.background.adopt(other.runtime.background)
        self.startup += other.startup
        self.shutdown += other.shutdown

    def override(self, runtime: Runtime) -> None:
        """Send calls on the server and its hub to ``runtime`` until ``restore``.

        The newest of several overrides counts.
        """
        self._overrides.append(runtime)
        self._attach_hub()

    def restore(self, runtime: Runtime) -> None:
        """Take an override back; raises ``ValueError`` for one that is not there."""
        self._overrides.remove(runtime)
        self._attach_hub()

    def _attach_hub(self) -> None:
        self.hub._attach(self.current.node.parts, self.current.stop)  # noqa: SLF001


def check_hook(hook: F) -> F:
    """Return ``hook``; raises ``ValueError`` if it can't be called."""
    if not callable(hook):
        raise ValueError(f"a hook must be callable, not {hook!r:.80}")
    return hook
