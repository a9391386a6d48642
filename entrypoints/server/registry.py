"""What an application has registered with its server, and the node that it reaches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from eyewall.application.hub.hub import Hub
from eyewall.application.node import Node
from eyewall.server.background import Background

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """What stands behind a server: what is asked of the server and its hub reaches this."""

    node: Node
    background: Background
    stop: Callable[[float], Awaitable[None]]


class Registry:
    """The hub of a server, its hooks, and what stands behind it at the moment."""

    def __init__(self, inside: Inside) -> None:
        self.hub: Hub = inside.node.hub
        self.inside = inside
        """The server's own."""
        self.startup: list[Hook] = []
        self.shutdown: list[Hook] = []
        self._stand_ins: list[Inside] = []
        self._turn()

    @property
    def asked(self) -> Inside:
        """What is reached now: the server's own, or what stands in for it."""
        return self._stand_ins[-1] if self._stand_ins else self.inside

    def become(self, inside: Inside) -> None:
        """Have ``inside`` behind the server from now on."""
        self.inside = inside
        self._turn()

    # --- for tests: what was built and registered once, used without its sockets

    def adopt(self, other: Registry) -> None:
        """Take over what the application has registered with ``other`` so far."""
        self.inside.node.adopt(other.inside.node)
        self.inside.background.adopt(other.inside.background)
        self.startup += other.startup
        self.shutdown += other.shutdown

    def stand_in(self, inside: Inside) -> None:
        """Let ``inside`` get what is asked of the server and its hub, until ``stand_back``.

        Of several, the last one does.
        """
        self._stand_ins.append(inside)
        self._turn()

    def stand_back(self, inside: Inside) -> None:
        self._stand_ins.remove(inside)
        self._turn()

    def _turn(self) -> None:
        self.hub._attach(self.asked.node.parts, self.asked.stop)  # noqa: SLF001


def checked(hook: F) -> F:
    if not callable(hook):
        raise ValueError(f"a hook must be callable, not {hook!r:.80}")
    return hook
