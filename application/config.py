"""What a node is told about itself, and the adapters that it works with."""

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
from eyewall.domain.identity import NodeId
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import DROP

_QUEUE = QueueConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node is told about itself. Times in seconds; a limit of None is off."""

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
    """Which of the ``system:`` requests clients may make, as ``commands_of`` reads it."""
    implicit_rooms: bool = True
    session_ttl: float = 120.0
    """How long a session, and a used invite, outlive a cut."""
    presence_grace: float = 0.0
    """How long a cut is hidden from the others."""
    offline_default: str = DROP
    """What becomes of a message to a user that nobody answers, where its options don't say."""
    queue: QueueConfig = _QUEUE
    """How much may wait for a connection, here where it is not let in yet."""
    heartbeat: float = 25.0
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The adapters that a node works with."""

    outbound: MessageWriter
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
    """What the sockets watch the loop with; None: nobody does, and time is never lost."""
