"""What a node needs to be told, and what it can do without."""

from dataclasses import MISSING, FrozenInstanceError, fields

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
