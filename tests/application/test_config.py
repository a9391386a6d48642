"""What a node needs to be told, and what it can do without."""

from dataclasses import MISSING, FrozenInstanceError, fields
from datetime import timedelta
from typing import Any

import pytest

from eyewall.application.config import NodeConfig, Ports
from eyewall.domain.identity import NodeId


def test_a_node_needs_a_name_and_no_more():
    needed = [f.name for f in fields(NodeConfig) if f.default is MISSING]

    assert needed == ["node_id"]


def test_limits_on_connections_are_off_unless_set():
    config = NodeConfig(node_id=NodeId("n1"))

    limits = {getattr(config, f.name) for f in fields(NodeConfig) if f.name.startswith("max_conn")}
    assert limits == {None}


def test_who_watches_and_who_judges_may_be_left_out():
    optional = {f.name for f in fields(Ports) if f.default is None}

    assert optional == {
        "offline",
        "metrics",
        "authenticator",
        "access_controller",
        "validator",
        "limiter",
        "stalls",
    }


def test_nobody_changes_what_a_node_was_told():
    config = NodeConfig(node_id=NodeId("n1"))

    with pytest.raises(FrozenInstanceError):
        config.node_id = NodeId("n2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", ""),
        ("cluster_channel", "a\nb"),
        ("lease", 0),
        ("session_ttl", -1),
        ("presence_grace", "soon"),
        ("workers", 0),
        ("worker_queue", 1.5),
        ("lane_queue", True),
        ("max_message_size", None),
        ("max_connections", 0),
        ("offline_default", "keep"),
        ("client_commands", {"dance"}),
    ],
)
def test_a_value_that_a_node_can_not_work_with_is_refused_where_it_is_built(field, value):
    with pytest.raises(ValueError, match=field):
        NodeConfig(**{"node_id": NodeId("n1"), field: value})


def test_times_are_in_seconds_and_commands_a_set():
    given: dict[str, Any] = {"lease": timedelta(minutes=1), "client_commands": ["join", "join"]}

    config = NodeConfig(node_id=NodeId("n1"), **given)

    assert (config.lease, config.client_commands) == (60.0, frozenset({"join"}))
