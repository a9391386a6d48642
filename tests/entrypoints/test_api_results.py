"""api.md: the options and results as its tables say: fields, defaults, and wrong values."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping

import pytest

from eyewall import (
    Acker,
    AckOptions,
    AckResult,
    BatchDeliveryReport,
    ConnMeta,
    DeliveryReport,
    DeliveryStatus,
    DropPolicy,
    Failure,
    FailureReason,
    HeartbeatConfig,
    HubStats,
    JoinOptions,
    Member,
    Membership,
    Message,
    PendingAck,
    PresenceState,
    Priority,
    QueueConfig,
    RetryPolicy,
    RoomInfo,
    RoomOptions,
    RoomPolicy,
    RoomRole,
    SendAttempt,
    SendOptions,
    SendResult,
    Target,
    Where,
)

DEFAULTS = {
    Message: {
        "event": "message",
        "data": None,
        "id": None,
        "namespace": None,
        "version": None,
        "headers": None,
        "priority": Priority.NORMAL,
    },
    SendOptions: {
        "require_ack": False,
        "ack_timeout": 5.0,
        "retry_max": 0,
        "retry_backoff": 0.05,
        "ordering_key": None,
        "ttl": None,
    },
    AckOptions: {"timeout": 5.0, "require_all": False},
    RetryPolicy: {
        "max_retries": 3,
        "base_delay": 0.1,
        "backoff_factor": 2.0,
        "max_delay": 30.0,
        "jitter": 0.1,
        "retryable": frozenset(
            {
                *(FailureReason.QUEUE_FULL, FailureReason.TIMEOUT, FailureReason.SEND_TIMEOUT),
                *(FailureReason.ACK_TIMEOUT, FailureReason.CONN_ERROR, FailureReason.CONN_CLOSED),
            }
        ),
    },
    QueueConfig: {
        "size": 256,
        "max_bytes": 8 * 1024 * 1024,
        "drop_policy": DropPolicy.DROP_NEWEST,
    },
    HeartbeatConfig: {"interval": 25.0, "pong_timeout": 60.0, "write_wait": 10.0},
    RoomOptions: {
        "policy": RoomPolicy.PUBLIC,
        "capacity": None,
        "allowed_roles": frozenset(),
        "auto_cleanup": True,
        "announce": False,
        "metadata": {},
    },
    JoinOptions: {"role": RoomRole.MEMBER, "invited_by": None, "force": False},
    ConnMeta: {
        "user_id": None,
        "device_id": None,
        "roles": frozenset(),
        "attributes": {},
        "tags": frozenset(),
        "ip": None,
        "user_agent": None,
        "expires_at": None,
    },
}

RESULTS = {
    DeliveryReport: ["target", "status", "error", "attempts"],
    BatchDeliveryReport: [
        *("total", "success", "dropped", "failed", "stored", "forwarded", "unknown", "reports"),
    ],
    Acker: ["user_id", "conn_id"],
    AckResult: [
        *("expected", "received", "nacked", "timed_out", "errors", "acked", "refused", "silent"),
    ],
    SendResult: ["success", "attempts", "total_retries", "total_time", "final_error"],
    SendAttempt: ["number", "started_at", "duration", "success", "error"],
    PresenceState: ["online", "connections", "last_seen", "typing"],
    Membership: ["room_id", "conn_id", "role", "members", "epoch", "offset"],
    Member: ["user_id", "role", "connections", "joined_at"],
    RoomInfo: ["id", "options", "members", "created_at", "epoch", "offset"],
    PendingAck: ["message", "conn_id", "attempt", "since", "deadline"],
    HubStats: [
        *("connections", "users", "rooms", "in_messages", "out_messages"),
        *("errors", "drops", "started_at", "uptime", "refused", "unsent", "bad_packets"),
        *("foreign_epochs", "stray_acks", "unreported_failures", "loop_stalls", "accept_pauses"),
    ],
    Failure: ["message", "recipient", "reason", "error", "queue", "duration"],
}


def build(kind, **fields):
    return kind(**({"topic": "t"} if kind is Message else {}), **fields)


# --- options


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_options_are_frozen_dataclasses_with_these_defaults(kind):
    made = build(kind)

    assert dataclasses.is_dataclass(kind)
    for name, default in DEFAULTS[kind].items():
        found = getattr(made, name)
        if isinstance(default, frozenset):
            found = frozenset(found)
        elif isinstance(default, Mapping):
            found = dict(found)
        assert found == default, name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next(iter(DEFAULTS[kind])), None)


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_every_field_of_an_option_may_be_named(kind):
    assert build(kind, **DEFAULTS[kind]) == build(kind)


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_a_field_that_is_not_there_is_refused(kind):
    with pytest.raises(TypeError):
        build(kind, colour="red")


WRONG = [
    (Message, {"topic": ""}),
    (Message, {"topic": "t" * 257}),
    (Message, {"topic": None}),
    (Message, {"topic": "t", "event": ""}),
    (Message, {"topic": "t", "event": 5}),
    (Message, {"topic": "t", "id": 5}),
    (Message, {"topic": "t", "namespace": 5}),
    (Message, {"topic": "t", "version": 2}),
    (Message, {"topic": "t", "headers": {"a": 1}}),
    (Message, {"topic": "t", "headers": ["a"]}),
    (Message, {"topic": "t", "priority": 99}),
    (SendOptions, {"ack_timeout": 0}),
    (SendOptions, {"ack_timeout": -1.0}),
    (SendOptions, {"retry_max": -1}),
    (SendOptions, {"retry_max": 1.5}),
    (SendOptions, {"retry_backoff": -0.1}),
    (SendOptions, {"ttl": -1}),
    (RetryPolicy, {"max_retries": -1}),
    (RetryPolicy, {"base_delay": -1}),
    (RetryPolicy, {"backoff_factor": 0.5}),
    (RetryPolicy, {"backoff_factor": "2"}),
    (RetryPolicy, {"max_delay": float("inf")}),
    (RetryPolicy, {"jitter": 1.5}),
    (RetryPolicy, {"jitter": float("nan")}),
    (RetryPolicy, {"retryable": {"bad luck"}}),
    (AckOptions, {"timeout": 0}),
    (AckOptions, {"timeout": -5.0}),
    (AckOptions, {"timeout": float("nan")}),
    (AckOptions, {"timeout": "5"}),
    (QueueConfig, {"size": 0}),
    (QueueConfig, {"size": -1}),
    (QueueConfig, {"size": 1.5}),
    (QueueConfig, {"max_bytes": 0}),
    (QueueConfig, {"drop_policy": "never"}),
    (HeartbeatConfig, {"interval": 0}),
    (HeartbeatConfig, {"interval": -1}),
    (HeartbeatConfig, {"pong_timeout": 0}),
    (HeartbeatConfig, {"write_wait": 0}),
    (HeartbeatConfig, {"write_wait": float("nan")}),
    (RoomOptions, {"policy": "open to all"}),
    (RoomOptions, {"capacity": 0}),
    (RoomOptions, {"capacity": -1}),
    (RoomOptions, {"capacity": 1.5}),
    (RoomOptions, {"allowed_roles": "staff"}),
    (RoomOptions, {"allowed_roles": [5]}),
    (JoinOptions, {"role": "boss"}),
    (ConnMeta, {"roles": "staff"}),
    (ConnMeta, {"roles": [5]}),
    (ConnMeta, {"tags": "red"}),
    (ConnMeta, {"user_id": ""}),
    (ConnMeta, {"user_id": 5}),
    (ConnMeta, {"expires_at": datetime.datetime(2030, 1, 1)}),  # noqa: DTZ001
    (ConnMeta, {"expires_at": 5}),
]


@pytest.mark.parametrize(("kind", "fields"), WRONG, ids=str)
def test_a_wrong_value_raises_where_it_is_built(kind, fields):
    with pytest.raises(ValueError, match=f"{list(fields)[-1]}|is not a valid"):
        kind(**fields)


TIMES = [
    (SendOptions, "ack_timeout"),
    (SendOptions, "retry_backoff"),
    (SendOptions, "ttl"),
    (RetryPolicy, "base_delay"),
    (RetryPolicy, "max_delay"),
    (AckOptions, "timeout"),
    (HeartbeatConfig, "write_wait"),
    (HeartbeatConfig, "interval"),
]


@pytest.mark.parametrize(("kind", "name"), TIMES)
def test_a_timedelta_stands_wherever_seconds_do(kind, name):
    span = datetime.timedelta(seconds=2.5)

    assert build(kind, **{name: span}) == build(kind, **{name: 2.5})


def test_roles_and_tags_take_any_iterable_and_are_frozensets():
    meta = ConnMeta(roles=["a", "b", "a"], tags=(tag for tag in "xy"))

    assert meta.roles == frozenset({"a", "b"})
    assert meta.tags == frozenset({"x", "y"})
    assert isinstance(meta.roles, frozenset)
    assert isinstance(meta.tags, frozenset)


def test_a_target_is_a_connection_a_user_or_a_room():
    assert Target.conn("c") != Target.user("c") != Target.room("c")
    assert Target.user("u") == Target.user("u")


@pytest.mark.parametrize("wrong", ["", None, 5])
@pytest.mark.parametrize("make", [Target.conn, Target.user, Target.room])
def test_a_target_that_can_be_nobodys_id_raises(make, wrong):
    with pytest.raises(ValueError, match=f"{make.__name__}_id must be"):
        make(wrong)


def test_where_takes_tags_roles_user_ids_and_attributes():
    where = Where(tags=["a"], roles=["b"], user_ids=["c"], attributes={"d": 1})

    assert (where.tags, where.roles, where.user_ids) == ({"a"}, {"b"}, {"c"})
    assert where.attributes == {"d": 1}


# --- results


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_results_have_these_fields_in_this_order(kind):
    """What a release adds comes behind them, and may be left out."""
    fields = dataclasses.fields(kind)
    count = len(RESULTS[kind])

    assert [field.name for field in fields[:count]] == RESULTS[kind]
    assert all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in fields[count:]
    )


def test_a_result_is_built_by_hand():
    """As a test of a user's own does."""
    report = DeliveryReport("c1", DeliveryStatus.OK, None, 1)

    assert (report.target, report.status, report.error, report.attempts) == (
        "c1",
        DeliveryStatus.OK,
        None,
        1,
    )
