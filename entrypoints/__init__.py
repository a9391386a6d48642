"""a real-time hub for Python.

Rooms, presence and delivery guarantees over WebSockets, on Tornado.

>>> from eyewall import Server
>>> server = Server()
>>> @server.on("echo:ping")
... async def ping(ctx, msg):
...     await ctx.send("echo:pong", "message", {"echo": msg.data["text"]})
>>> server.run(port=8080)
"""

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.limits.memory import TokenBucketLimiter
from eyewall.adapters.state.memory import MemoryState
from eyewall.adapters.validation.marshmallow import MarshmallowValidator
from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.application.connections.registry import Connection
from eyewall.application.dispatch.router import Routes
from eyewall.application.hub.hub import Context, Handler, Hub, Middleware
from eyewall.application.ports.bus import PubSub, Subscription
from eyewall.application.ports.message import Codec
from eyewall.application.ports.plugins import (
    AccessController,
    Authenticator,
    Limiter,
    Logger,
    Metrics,
    Tracer,
    Validator,
)
from eyewall.application.ports.stores import HistoryStore, OfflineStore, StateStore
from eyewall.domain.ack_result import Acker, AckResult
from eyewall.domain.connection import DisconnectReason, HeartbeatConfig
from eyewall.domain.envelope import Envelope, Message, Priority, Raw, StreamPosition
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    Forbidden,
    HandlerNotFound,
    InvalidEnvelope,
    JoinForbidden,
    Misuse,
    Nacked,
    NotAMember,
    Overloaded,
    QueueFull,
    RateLimited,
    Refused,
    RoomExists,
    RoomFull,
    RoomNotFound,
    ShuttingDown,
    SlowConsumer,
    Unauthorized,
    Unavailable,
    UnsafeConfiguration,
    UserOffline,
    ValidationError,
)
from eyewall.domain.handshake import Handshake
from eyewall.domain.history import HistoryPage
from eyewall.domain.identity import ConnId, ConnMeta, MessageId, NodeId, RoomId, UserId, Where
from eyewall.domain.membership import Member, Membership, RoomInfo
from eyewall.domain.outbox import DropPolicy, QueueConfig
from eyewall.domain.presence import PresenceState
from eyewall.domain.report import (
    AckOptions,
    BatchDeliveryReport,
    DeliveryReport,
    DeliveryStatus,
    Failure,
    FailureReason,
    HubStats,
    PendingAck,
    SendOptions,
    Target,
)
from eyewall.domain.retry import RetryPolicy, SendAttempt, SendResult
from eyewall.domain.room import JoinOptions, RoomOptions, RoomPolicy, RoomRole
from eyewall.server.background import BackgroundTask
from eyewall.server.server import Server
from eyewall.settings.groups import SettingsError
from eyewall.settings.settings import Settings
from eyewall.version import VERSION as __version__  # noqa: N811

__all__ = [
    "AccessController",
    "AckOptions",
    "AckResult",
    "AckTimeout",
    "Acker",
    "Authenticator",
    "BackgroundTask",
    "BatchDeliveryReport",
    "Codec",
    "CompressionConfig",
    "ConnId",
    "ConnMeta",
    "Connection",
    "ConnectionClosed",
    "Context",
    "DeliveryReport",
    "DeliveryStatus",
    "DisconnectReason",
    "DropPolicy",
    "Envelope",
    "EyewallError",
    "Failure",
    "FailureReason",
    "Forbidden",
    "Handler",
    "HandlerNotFound",
    "Handshake",
    "HeartbeatConfig",
    "HistoryPage",
    "HistoryStore",
    "Hub",
    "HubStats",
    "InvalidEnvelope",
    "JoinForbidden",
    "JoinOptions",
    "Limiter",
    "Logger",
    "MarshmallowValidator",
    "Member",
    "Membership",
    "MemoryPubSub",
    "MemoryState",
    "Message",
    "MessageId",
    "Metrics",
    "Middleware",
    "Misuse",
    "Nacked",
    "NodeId",
    "NotAMember",
    "OfflineStore",
    "Overloaded",
    "PendingAck",
    "PresenceState",
    "Priority",
    "PubSub",
    "QueueConfig",
    "QueueFull",
    "RateLimited",
    "Raw",
    "Refused",
    "RetryPolicy",
    "RoomExists",
    "RoomFull",
    "RoomId",
    "RoomInfo",
    "RoomNotFound",
    "RoomOptions",
    "RoomPolicy",
    "RoomRole",
    "Routes",
    "SendAttempt",
    "SendOptions",
    "SendResult",
    "Server",
    "Settings",
    "SettingsError",
    "ShuttingDown",
    "SlowConsumer",
    "StateStore",
    "StreamPosition",
    "Subscription",
    "Target",
    "TokenBucketLimiter",
    "Tracer",
    "Unauthorized",
    "Unavailable",
    "UnsafeConfiguration",
    "UserId",
    "UserOffline",
    "ValidationError",
    "Validator",
    "Where",
    "__version__",
]


_FOR_USERS = frozenset(
    ("adapters", "browser", "chat", "client", "container", "middleware", "testing")
)
"""The modules that users import from, as the documentation says."""


def __dir__() -> list[str]:
    """Return the public names, without modules that are only imported internally."""
    special = {name for name in globals() if name.startswith("__")}
    return sorted({*__all__, *special, *(_FOR_USERS & globals().keys())})
