"""What users register with a hub: hooks, failure handlers, routes, middleware.

All of it may be added while the hub runs, and applies from the next message on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from eyewall.application.failures import Kind
from eyewall.application.hooks import Event
from eyewall.application.middleware import Middleware
from eyewall.application.node import Node
from eyewall.application.routes import OrderingKey, Registration
from eyewall.domain.report import Failure

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Callable[[Failure], Any])


class Registrations:
    """The part of the hub that takes in callables of the application."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # --- lifecycle; every registration also works as a decorator

    def on_connect(self, hook: F) -> F:
        """Run ``hook(conn)`` for each new connection, before anything is read from it.

        A user has come with the first of its connections: ``hub.presence`` counts them.

        A hook that raises ``Refused`` ends the connection with 1008, and the client stays
        away; with 1013 if it is ``Unavailable`` or a refusal that may be retried
        (``Overloaded``, ``RateLimited``), and with 1011 for whatever else it raises: the client
        comes back then. Until its hooks have let it in, a connection gets what is sent to it by
        name, and nothing that is for many, for a room or for a user.
        """
        return self._node.hooks.add(Event.CONNECT, hook)

    def on_disconnect(self, hook: F) -> F:
        """Run ``hook(conn, reason)`` once for each connection that has ended.

        Whether that was the user's last one, on any node, says ``hub.presence``.
        """
        return self._node.hooks.add(Event.DISCONNECT, hook)

    def on_message(self, hook: F) -> F:
        """Run ``hook(conn, raw)`` on every text (``str``) or binary (``bytes``) message.

        When it returns True it has taken the message, and nothing else happens with it.
        """
        return self._node.hooks.add(Event.MESSAGE, hook)

    def on_error(self, hook: F) -> F:
        """Run ``hook(conn, error)`` when something goes wrong with a connection or handler."""
        return self._node.hooks.add(Event.ERROR, hook)

    def on_join(self, hook: F) -> F:
        """Run ``hook(room_id, conn)`` when a connection is in a room."""
        return self._node.hooks.add(Event.JOIN, hook)

    def on_leave(self, hook: F) -> F:
        """Run ``hook(room_id, conn, reason)`` when it is out again.

        The reason is ``left``, ``kicked``, ``banned``, ``disconnected`` or ``deleted``.
        """
        return self._node.hooks.add(Event.LEAVE, hook)

    def remove_hook(self, hook: Callable[..., Any]) -> bool:
        """Take back a hook or a failure handler; False if it was not registered."""
        removed = self._node.hooks.remove(hook)
        return self._node.failures.remove(hook) or removed

    # --- failures

    def on_send_failure(self, fn: H) -> H:
        """Run ``fn(failure)`` for every message that did not arrive."""
        return self._node.failures.add(Kind.SEND_FAILURE, fn)

    def on_queue_full(self, fn: H) -> H:
        """Run it for what a full queue did not take."""
        return self._node.failures.add(Kind.QUEUE_FULL, fn)

    def on_user_offline(self, fn: H) -> H:
        """Run ``fn(failure)`` for each message that was sent to a user without a connection.

        It is about messages, not about presence: a user who goes offline, and to whom nothing
        is sent, is not told here. Of that hear ``on_connect``, ``on_disconnect`` and
        ``presence``.
        """
        return self._node.failures.add(Kind.USER_OFFLINE, fn)

    def on_connection_error(self, fn: H) -> H:
        """Run it for what a connection's end lost."""
        return self._node.failures.add(Kind.CONNECTION_ERROR, fn)

    def on_timeout(self, fn: H) -> H:
        """Run it for what was not written or acknowledged in time."""
        return self._node.failures.add(Kind.TIMEOUT, fn)

    # --- routing

    def use(self, *middleware: Middleware) -> None:
        """Put middleware around all handlers, from the next message on."""
        self._node.router.use(*middleware)

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> None:
        """Register the handler for the topics of ``pattern``; raises ``ValueError``."""
        self._node.router.add(Registration(pattern, handler, middleware, version, ordering_key))
