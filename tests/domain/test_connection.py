"""The life of a connection."""

import dataclasses
from datetime import timedelta

import pytest

from eyewall.domain.connection import CLOSE_CODES, DisconnectReason, HeartbeatConfig, close_frame

FRAMES = {
    "normal": (1000, "normal"),
    "client_closed": (1000, "normal"),
    "connection_lost": (1000, "normal"),
    "read_error": (1000, "normal"),
    "write_error": (1000, "normal"),
    "protocol_error": (1002, "protocol_error"),
    "unsupported_data": (1000, "normal"),
    "invalid_utf8": (1007, "invalid_utf8"),
    "message_too_big": (1009, "message_too_big"),
    "policy_violation": (1008, "policy_violation"),
    "internal_error": (1011, "internal_error"),
    "server_shutdown": (1012, "server_shutdown"),
    "overloaded": (1013, "overloaded"),
    "auth_failed": (4504, "auth_failed"),
    "token_expired": (4401, "token_expired"),
    "heartbeat_timeout": (4408, "heartbeat_timeout"),
    "slow_consumer": (4413, "slow_consumer"),
    "replaced": (4501, "replaced"),
    "disconnected": (4503, "disconnected"),
}
"""The close codes of the wire protocol: clients come back or stay away by them."""


@pytest.mark.parametrize("reason", DisconnectReason, ids=str)
def test_each_reason_is_told_as_the_protocol_says(reason):
    assert close_frame(reason) == FRAMES[reason.value]


def test_the_reasons_are_those_of_the_api():
    assert {reason.value for reason in DisconnectReason} == set(FRAMES)
    assert all(reason.value == reason.name.lower() for reason in DisconnectReason)


def test_1003_is_never_sent():
    assert 1003 not in CLOSE_CODES.values()


@pytest.mark.parametrize("reason", DisconnectReason, ids=str)
def test_a_close_frame_fits_and_may_be_sent(reason):
    """A control frame holds 123 bytes of text; 1005, 1006 and 1015 are never sent."""
    code, text = close_frame(reason)

    assert len(text.encode()) <= 123
    assert code in {1000, 1002, 1007, 1008, 1009, 1011, 1012, 1013} or 4000 <= code <= 4999


@pytest.mark.parametrize(
    ("reason", "comes_back"),
    [
        (DisconnectReason.INTERNAL_ERROR, True),
        (DisconnectReason.SERVER_SHUTDOWN, True),
        (DisconnectReason.OVERLOADED, True),
        (DisconnectReason.TOKEN_EXPIRED, True),
        (DisconnectReason.HEARTBEAT_TIMEOUT, True),
        (DisconnectReason.SLOW_CONSUMER, True),
        (DisconnectReason.NORMAL, False),
        (DisconnectReason.POLICY_VIOLATION, False),
        (DisconnectReason.PROTOCOL_ERROR, False),
        (DisconnectReason.MESSAGE_TOO_BIG, False),
        (DisconnectReason.REPLACED, False),
        (DisconnectReason.DISCONNECTED, False),
        (DisconnectReason.AUTH_FAILED, False),
    ],
)
def test_the_code_tells_the_client_whether_to_come_back(reason, comes_back):
    code, _ = close_frame(reason)

    assert (code in {1001, 1006, 1011, 1012, 1013} or 4000 <= code <= 4499) is comes_back


def test_the_heartbeat_has_the_documented_defaults():
    config = HeartbeatConfig()

    assert (config.interval, config.pong_timeout, config.write_wait) == (25.0, 60.0, 10.0)


def test_the_heartbeat_takes_timedeltas():
    config = HeartbeatConfig(interval=timedelta(seconds=1), pong_timeout=timedelta(minutes=1))

    assert (config.interval, config.pong_timeout) == (1.0, 60.0)
    assert type(config.interval) is type(config.pong_timeout) is float


@pytest.mark.parametrize("what", ["interval", "pong_timeout", "write_wait"])
@pytest.mark.parametrize("wrong", [0, -1, None, "5", float("nan")])
def test_a_wrong_time_is_refused_by_name(what, wrong):
    with pytest.raises(ValueError, match=f"HeartbeatConfig.{what} must be"):
        HeartbeatConfig(**{what: wrong})


def test_a_connection_is_not_declared_dead_before_it_was_asked():
    assert HeartbeatConfig(interval=30, pong_timeout=30).pong_timeout == 30.0

    with pytest.raises(ValueError, match="pong_timeout must be at least interval"):
        HeartbeatConfig(interval=30, pong_timeout=29.9)


def test_times_are_compared_after_they_were_read():
    """A timedelta and a number can't be compared as they are."""
    with pytest.raises(ValueError, match="pong_timeout must be at least interval"):
        HeartbeatConfig(interval=timedelta(minutes=2), pong_timeout=60)


def test_the_heartbeat_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HeartbeatConfig().interval = 5
