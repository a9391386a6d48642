"""The end of a connection: reasons, close codes and the heartbeat.

A close code tells a client whether to reconnect (protocol.md, "Close codes"): after 1001,
1006, 1011 to 1013 and 4000 to 4499 it does, after every other it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from eyewall.domain.duration import Seconds, seconds


class DisconnectReason(StrEnum):
    """Why a connection ended. The value is the reason text of the close frame."""

    NORMAL = "normal"
    CLIENT_CLOSED = "client_closed"
    CONNECTION_LOST = "connection_lost"
    READ_ERROR = "read_error"
    WRITE_ERROR = "write_error"
    PROTOCOL_ERROR = "protocol_error"
    UNSUPPORTED_DATA = "unsupported_data"
    INVALID_UTF8 = "invalid_utf8"
    MESSAGE_TOO_BIG = "message_too_big"
    POLICY_VIOLATION = "policy_violation"
    INTERNAL_ERROR = "internal_error"
    SERVER_SHUTDOWN = "server_shutdown"
    OVERLOADED = "overloaded"
    AUTH_FAILED = "auth_failed"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105  (a reason, not a secret)
    HEARTBEAT_TIMEOUT = "heartbeat_timeout"
    SLOW_CONSUMER = "slow_consumer"
    REPLACED = "replaced"
    DISCONNECTED = "disconnected"


CLOSE_CODES = {
    DisconnectReason.NORMAL: 1000,
    DisconnectReason.PROTOCOL_ERROR: 1002,
    DisconnectReason.INVALID_UTF8: 1007,
    DisconnectReason.POLICY_VIOLATION: 1008,
    DisconnectReason.MESSAGE_TOO_BIG: 1009,
    DisconnectReason.INTERNAL_ERROR: 1011,
    DisconnectReason.SERVER_SHUTDOWN: 1012,
    DisconnectReason.OVERLOADED: 1013,
    DisconnectReason.TOKEN_EXPIRED: 4401,
    DisconnectReason.HEARTBEAT_TIMEOUT: 4408,
    DisconnectReason.SLOW_CONSUMER: 4413,
    DisconnectReason.REPLACED: 4501,
    DisconnectReason.DISCONNECTED: 4503,
    DisconnectReason.AUTH_FAILED: 4504,
}
"""The reasons that have a close code of their own; any other closes with 1000."""


COMES_BACK = frozenset(
    {
        DisconnectReason.CLIENT_CLOSED,  # so does a client that changes networks
        DisconnectReason.CONNECTION_LOST,
        DisconnectReason.READ_ERROR,
        DisconnectReason.WRITE_ERROR,
        DisconnectReason.INTERNAL_ERROR,
        DisconnectReason.SERVER_SHUTDOWN,
        DisconnectReason.OVERLOADED,
        DisconnectReason.TOKEN_EXPIRED,
        DisconnectReason.HEARTBEAT_TIMEOUT,
        DisconnectReason.SLOW_CONSUMER,
    }
)
"""After these a client may reconnect and resume its session."""


def close_frame(reason: DisconnectReason) -> tuple[int, str]:
    """Return the code and the reason text of the close frame."""
    code = CLOSE_CODES.get(reason, 1000)
    if code == 1000:
        return code, DisconnectReason.NORMAL.value
    return code, reason.value


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatConfig:
    """When a ping is sent, and when a silent connection counts as dead. Seconds."""

    interval: Seconds = 25.0
    """Between pings. Some proxies drop a silent connection after 30 s, many after 60 s."""

    pong_timeout: Seconds = 60.0
    """Without any data for so long, a pong included, the connection is closed with 4408. Two
    pings may be lost before that."""

    write_wait: Seconds = 10.0
    """A write without progress for so long closes the connection with 4413. A close handshake
    gets the same time."""

    def __post_init__(self) -> None:
        for what in ("interval", "pong_timeout", "write_wait"):
            value = seconds(getattr(self, what), f"HeartbeatConfig.{what}", positive=True)
            object.__setattr__(self, what, value)
        if self.pong_timeout < self.interval:  # type: ignore[operator]
            raise ValueError("HeartbeatConfig.pong_timeout must be at least interval")
