"""api.md: the names of the package, its errors, and what is awaited."""

from __future__ import annotations

import enum
import inspect

import pytest

import eyewall
from eyewall import (
    AckTimeout,
    Connection,
    ConnectionClosed,
    ConnId,
    Context,
    DeliveryStatus,
    DisconnectReason,
    DropPolicy,
    Envelope,
    EyewallError,
    FailureReason,
    HeartbeatConfig,
    Hub,
    MessageId,
    Misuse,
    Nacked,
    NodeId,
    Overloaded,
    Priority,
    QueueConfig,
    QueueFull,
    RateLimited,
    Refused,
    RoomId,
    RoomPolicy,
    RoomRole,
    Server,
    ShuttingDown,
    SlowConsumer,
    Unavailable,
    UserId,
    UserOffline,
    ValidationError,
)

# --- names


ENUMS = {
    DeliveryStatus: "OK DROPPED FAILED STORED FORWARDED UNKNOWN",
    Priority: "LOW NORMAL HIGH",
    DropPolicy: "DROP_NEWEST DROP_OLDEST DROP_AND_DISCONNECT",
    RoomPolicy: "PUBLIC PRIVATE INVITE_ONLY",
    RoomRole: "GUEST MEMBER MODERATOR ADMIN OWNER",
    FailureReason: (
        "QUEUE_FULL BROADCAST_FULL PENDING_FULL USER_OFFLINE TIMEOUT SEND_TIMEOUT ACK_TIMEOUT "
        "NACKED CONN_CLOSED CONN_ERROR CHANNEL_CLOSED VALIDATION PERMISSION UNKNOWN"
    ),
    DisconnectReason: (
        "NORMAL CLIENT_CLOSED CONNECTION_LOST READ_ERROR WRITE_ERROR PROTOCOL_ERROR "
        "UNSUPPORTED_DATA INVALID_UTF8 MESSAGE_TOO_BIG POLICY_VIOLATION INTERNAL_ERROR "
        "SERVER_SHUTDOWN OVERLOADED AUTH_FAILED TOKEN_EXPIRED HEARTBEAT_TIMEOUT SLOW_CONSUMER "
        "REPLACED DISCONNECTED"
    ),
}


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_enums_have_exactly_these_names(kind):
    assert issubclass(kind, enum.Enum)
    assert [member.name for member in kind] == ENUMS[kind].split()


def test_priorities_and_roles_have_an_order():
    assert Priority.LOW < Priority.NORMAL < Priority.HIGH
    assert RoomRole.GUEST < RoomRole.MEMBER < RoomRole.MODERATOR < RoomRole.ADMIN < RoomRole.OWNER


@pytest.mark.parametrize("kind", [ConnId, UserId, RoomId, NodeId, MessageId])
def test_ids_are_new_types_of_str(kind):
    assert kind.__supertype__ is str
    assert kind("a") == "a"


# --- errors

REFUSED = {
    "HandlerNotFound": "handler_not_found",
    "RateLimited": "rate_limited",
    "Overloaded": "overloaded",
    "Unauthorized": "unauthorized",
    "Forbidden": "forbidden",
    "ValidationError": "validation",
    "InvalidEnvelope": "invalid_envelope",
    "RoomNotFound": "room_not_found",
    "RoomExists": "room_exists",
    "RoomFull": "room_full",
    "JoinForbidden": "join_forbidden",
    "NotAMember": "not_a_member",
}

DELIVERY = {
    ConnectionClosed: "connection_closed",
    QueueFull: "queue_full",
    SlowConsumer: "slow_consumer",
    UserOffline: "user_offline",
    AckTimeout: "ack_timeout",
    Nacked: "nacked",
    ShuttingDown: "overloaded",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_the_code_of_the_protocol(name):
    kind = getattr(eyewall, name)

    assert issubclass(kind, Refused)
    assert issubclass(kind, EyewallError)
    assert kind.code == REFUSED[name]


@pytest.mark.parametrize("kind", DELIVERY, ids=lambda kind: kind.__name__)
def test_an_error_of_delivery_takes_a_text_and_has_a_code(kind):
    error = kind("the text")

    assert isinstance(error, EyewallError)
    assert str(error) == "the text"
    assert error.code == DELIVERY[kind]


def test_the_three_families():
    assert Unavailable("x").code == "unavailable"
    assert issubclass(Unavailable, EyewallError)
    assert issubclass(Misuse, EyewallError)
    assert not issubclass(Misuse, Refused)
    assert not issubclass(Unavailable, Refused)


def test_errors_with_more_than_a_text():
    limited = RateLimited(2.5)
    wrong = ValidationError({"name": ["too long"]})
    full = Overloaded()

    assert (limited.retry_after, RateLimited(1.0, "slow down").args) == (2.5, ("slow down",))
    assert wrong.fields == {"name": ["too long"]}
    assert full.retry_after == 1.0
    assert Overloaded("busy", retry_after=3.0).retry_after == 3.0
    assert str(Overloaded("busy")) == "busy"


# --- what is awaited and what is plain

AWAITED = """
    presence presence_many set_typing create_room update_room delete_room join leave leave_all
    invite revoke_invite set_role kick_user_from_room ban unban members room rooms broadcast
    broadcast_room broadcast_text send_to_conn send_text_to_conn send_to_user send_to_users
    broadcast_with_filter emit_to_room emit_to_room_except emit_with_ack request history
    disconnect_user disconnect_conn shutdown
"""

PLAIN = """
    on_connect on_disconnect on_message on_error on_join on_leave remove_hook connection
    connections connection_ids users set_meta get_meta find_by_tag user_connections use handle
    pending_acks on_send_failure on_queue_full on_user_offline on_connection_error on_timeout
    stats reset_stats
"""


@pytest.mark.parametrize("name", AWAITED.split())
def test_what_the_page_awaits_is_a_coroutine_function(name):
    assert inspect.iscoroutinefunction(getattr(Hub, name))


@pytest.mark.parametrize("name", PLAIN.split())
def test_everything_else_is_plain(name):
    assert callable(getattr(Hub, name))
    assert not inspect.iscoroutinefunction(getattr(Hub, name))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Context, "send send_message reply"),
        (Connection, "send send_raw close"),
        (Server, "start shutdown"),
    ],
)
def test_the_same_holds_for_the_others(kind, names):
    for name in names.split():
        assert inspect.iscoroutinefunction(getattr(kind, name)), name
    for name in ("on", "handle", "use", "include", "routes", "run", "background", "from_thread"):
        if hasattr(kind, name):
            assert not inspect.iscoroutinefunction(getattr(kind, name)), name


SERVER_DEFAULTS = {
    "workers": 64,
    "worker_queue": 2048,
    "lane_queue": 64,
    "check_origin": None,
    "max_message_size": 1 << 20,
    "max_connections": None,
    "max_connections_per_user": None,
    "max_connections_per_address": None,
    "handshake_timeout": 10.0,
    "authenticator": None,
    "access_controller": None,
    "validator": None,
    "metrics": None,
    "logger": None,
    "tracer": None,
    "pubsub": None,
    "state": None,
    "history": None,
    "offline": None,
    "offline_default": "drop",
    "node_id": None,
    "cluster_channel": "eyewall",
    "lease": 10.0,
    "session_ttl": 120.0,
    "presence_grace": 0.0,
    "client_commands": False,
    "implicit_rooms": True,
    "trusted_proxies": (),
    "refuse_with": "http",
    "start_page": True,
    "pages": (),
    "ops_host": "127.0.0.1",
    "ops_port": None,
}


@pytest.mark.parametrize("name", SERVER_DEFAULTS)
def test_the_servers_options_have_these_defaults(name):
    parameter = inspect.signature(Server).parameters[name]

    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default == SERVER_DEFAULTS[name]


def test_the_queue_and_heartbeat_may_be_given_as_they_are_by_default():
    Server(queue=QueueConfig(), heartbeat=HeartbeatConfig())


def test_an_envelope_has_the_fields_of_the_wire():
    envelope = Envelope("t", data={"a": 1})

    assert envelope.topic == "t"
    assert envelope.event == "message"
    assert envelope.data == {"a": 1}
    for name in ("id", "ref", "namespace", "version", "stream"):
        assert getattr(envelope, name) is None
    assert dict(envelope.headers) == {}
    assert envelope.ack is False
