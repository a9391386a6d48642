"""The configuration of a node and the adapters that it works with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.ports.bus import PubSub
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.message import Codec
from eyewall.application.ports.plugins import (
    AccessController,
    Authenticator,
    Limiter,
    Logger,
    Metrics,
    Validator,
)
from eyewall.application.ports.stores import HistoryStore, OfflineStore, StateStore
from eyewall.application.ports.transport import MessageWriter
from eyewall.domain.commands import commands_of
from eyewall.domain.duration import count, seconds
from eyewall.domain.identity import NodeId, name
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import DROP, offline_mode

_QUEUE = QueueConfig()
_COUNTS = ("workers", "worker_queue", "lane_queue", "max_message_size")
_LIMITS = ("max_connections", "max_connections_per_user", "max_connections_per_address")
_DURATIONS = ("session_ttl", "presence_grace", "heartbeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The options of a node. Durations are in seconds; a limit of None is off.

    A ``timedelta`` is converted to seconds. Raises ``ValueError`` for an invalid value.
    """

    node_id: NodeId
    cluster_channel: str = "eyewall"
    lease: float = 10.0
    workers: int = 64
    worker_queue: int = 2048
    lane_queue: int = 64
    max_message_size: int = 1 << 20
    max_connections: int | None = None
    max_connections_per_user: int | None = None
    max_connections_per_address: int | None = None
    client_commands: bool | Collection[str] = False
    """The ``system:`` requests that clients may make, in the form that ``commands_of`` reads."""
    implicit_rooms: bool = True
    session_ttl: float = 120.0
    """How long a session and a used invite are kept after the connection is lost."""
    presence_grace: float = 0.0
    """How long a lost connection is hidden from the other members: the grace period."""
    offline_default: str = DROP
    """What happens to a message that no connection of its user acks, by default."""
    queue: QueueConfig = _QUEUE
    """The bounds of the queue of a connection that is not admitted yet."""
    heartbeat: float = 25.0
    version: str = ""

    def __post_init__(self) -> None:
        name(self.node_id, "node_id")
        name(self.cluster_channel, "cluster_channel")
        for what in _COUNTS:
            count(getattr(self, what), what)
        for what in _LIMITS:
            if (limit := getattr(self, what)) is not None:
                count(limit, what)
        for what in _DURATIONS:
            object.__setattr__(self, what, seconds(getattr(self, what), what))
        object.__setattr__(self, "lease", seconds(self.lease, "lease", positive=True))
        offline_mode(self.offline_default, "offline_default")
        commands = commands_of(self.client_commands)
        if not isinstance(self.client_commands, bool):
            object.__setattr__(self, "client_commands", commands)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The adapters that a node works with."""

    writer: MessageWriter
    clock: Clock
    codec: Codec
    logger: Logger
    pubsub: PubSub
    state: StateStore
    history: HistoryStore
    offline: OfflineStore | None = None
    metrics: Metrics | None = None
    authenticator: Authenticator | None = None
    access_controller: AccessController | None = None
    validator: Validator | None = None
    limiter: Limiter | None = None
    stalls: Stalls | None = None
    """The stall detector of the sockets; None: stalls of the loop are not compensated."""
