"""The use cases that the hub calls, by name: what ``Node`` has to fit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from eyewall.application.config import NodeConfig, Ports
from eyewall.application.connections.hooks import Hooks
from eyewall.application.connections.registry import BroadcastGroups, Connection, Connections
from eyewall.application.connections.stats import Stats
from eyewall.application.delivery.direct import DirectMessages
from eyewall.application.delivery.offline import Offline
from eyewall.application.delivery.pending_acks import PendingAcks
from eyewall.application.delivery.retries import Retries
from eyewall.application.lifecycle.cluster_state import ClusterStateSync
from eyewall.application.lifecycle.remote import RemoteConnections
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.outbound.failures import Failures
from eyewall.application.ports.plugins import Logger
from eyewall.application.rooms.history import RoomHistory
from eyewall.application.rooms.moderation import RoomAdmin
from eyewall.application.rooms.presence import Presences
from eyewall.application.rooms.publisher import Publisher
from eyewall.domain.envelope import Envelope
from eyewall.domain.identity import ConnMeta


class Routing(Protocol):
    """Registers handlers and middleware; ``Hub`` has their types."""

    def use(self, *middleware: Any) -> None:
        """Put middleware around all handlers; raises ``ValueError`` for what can't be called."""

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Any,
        version: str | None = None,
        ordering_key: Callable[..., Any] | None = None,
    ) -> None:
        """Register a handler for the topics of ``pattern``; raises ``ValueError``."""


class AuthorizesAgain(Protocol):
    """Asks the access controller once more, for a connection whose user has changed."""

    def again(self, conn: Connection, message: Envelope, meta: ConnMeta) -> Awaitable[None] | None:
        """Return what has to be awaited for the decision, which may raise ``Forbidden``; None
        if the message was let through for ``meta`` and the owner is still the same."""


class UseCases(Protocol):
    """The use cases of one node, as far as the hub calls them."""

    config: NodeConfig
    ports: Ports
    logger: Logger
    stats: Stats
    hooks: Hooks
    failures: Failures
    connections: Connections
    broadcast_groups: BroadcastGroups
    fanout: FanOut
    publisher: Publisher
    room_history: RoomHistory
    room_admin: RoomAdmin
    presences: Presences
    messages: DirectMessages
    pending_acks: PendingAcks
    offline: Offline
    retries: Retries
    operations: RemoteConnections
    cluster_state: ClusterStateSync

    @property
    def router(self) -> Routing:
        """The routes of the application."""
