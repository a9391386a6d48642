"""What a server's keywords become: the node, its ports and its sockets."""

from __future__ import annotations

import inspect
import os
import socket
from datetime import timedelta

import pytest
from dependency_injector import providers

from eyewall import (
    HeartbeatConfig,
    MarshmallowValidator,
    MemoryPubSub,
    MemoryState,
    QueueConfig,
    Server,
    Settings,
    TokenBucketLimiter,
)
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.container import Container
from eyewall.middleware import rate_limit, trace, validate
from eyewall.server.assemble import assemble, default_node_id
from eyewall.server.options import Options
from eyewall.testing import TestHub
from tests.application.fitting_support import whole

KEYWORDS = {p.name: p.default for p in inspect.signature(Server).parameters.values()}


def options(**given):
    return Options(KEYWORDS | given)


def node(**given):
    assembled, _ = assemble(options(**given))
    return assembled


def sockets(**given):
    _, assembled = assemble(options(**given))
    return assembled


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node_id", "n7"),
        ("cluster_channel", "blue"),
        ("lease", 3.0),
        ("session_ttl", 7.0),
        ("presence_grace", 0.5),
        ("workers", 3),
        ("worker_queue", 5),
        ("lane_queue", 7),
        ("max_message_size", 999),
        ("max_connections", 11),
        ("max_connections_per_user", 12),
        ("max_connections_per_address", 13),
        ("client_commands", True),
        ("client_commands", {"join", "leave"}),
        ("implicit_rooms", False),
    ],
)
def test_an_option_reaches_the_node(name, value):
    assert getattr(node(**{name: value}).config, name) == value


def test_times_reach_the_node_in_seconds():
    built = node(
        lease=timedelta(seconds=7), heartbeat=HeartbeatConfig(interval=timedelta(seconds=4))
    )

    assert (built.config.lease, built.config.heartbeat) == (7.0, 4.0)


@pytest.mark.parametrize(
    "port",
    [
        *("pubsub", "state", "history", "offline", "metrics", "logger", "authenticator"),
        "access_controller",
    ],
)
def test_an_adapter_that_is_given_is_taken_even_if_it_is_empty(port):
    """An adapter may have a length; one of 0 is no reason to put another in its place."""

    adapter = whole(port, __len__=lambda self: 0)

    assert getattr(node(**{port: adapter}).ports, port) is adapter


def test_bus_state_and_history_left_out_are_in_memory_and_of_one_server_alone():
    first, second = node(), node()

    assert isinstance(first.ports.pubsub, MemoryPubSub)
    assert isinstance(first.ports.state, MemoryState)
    assert first.ports.pubsub is not second.ports.pubsub
    assert isinstance(first.ports.history, MemoryHistory)
    assert first.ports.state is not second.ports.state
    assert first.ports.history is not second.ports.history


def test_without_a_store_nothing_is_stored():
    built = node()

    assert built.ports.offline is None
    assert built.config.offline_default == "drop"
    kept = node(offline=MemoryOffline(), offline_default="store")
    assert kept.config.offline_default == "store"


@pytest.mark.parametrize(
    ("default", "text"), [("store", "needs a store"), ("keep", "offline_default"), (None, "off")]
)
def test_a_default_that_can_not_be_kept_is_refused(default, text):
    with pytest.raises(ValueError, match=text):
        node(offline_default=default)


def test_the_sockets_know_whom_to_tell():
    """They are built before the node that takes in what they read."""
    built, before = assemble(options())

    assert before.transport_events is built.transport_events
    assert before.outbound is built.ports.writer


@pytest.mark.parametrize(("queue", "batch"), [(2048, 512), (1, 1)])
def test_a_batch_adds_a_quarter_of_the_worker_queue_and_at_least_one_message(queue, batch):
    """So that one batch never fills the queue, and a small queue is still read for."""
    assert sockets(worker_queue=queue)._io.poller._budget == batch


@pytest.mark.parametrize(
    "wrong",
    [
        {"node_id": ""},
        {"node_id": "a\nb"},
        {"cluster_channel": ""},
        {"lease": 0},
        {"workers": 0},
        {"worker_queue": 0},
        {"lane_queue": 0},
        {"max_message_size": 0},
        {"handshake_timeout": 0},
        {"max_connections": 0},
        {"max_connections_per_user": 0},
        {"max_connections_per_address": 0},
        {"trusted_proxies": ["everybody"]},
        {"trusted_proxies": "10.0.0.0/8"},
        {"trusted_proxies": 10},
        {"trusted_proxies": [10]},
        {"refuse_with": "closed"},
        {"start_page": "off"},
        {"pages": "/login"},
        {"pages": None},
        {"pages": ("/login", object)},
        {"pages": [("/login",)]},
        {"pages": [42]},
        pytest.param({"pages": iter([])}, id="pages that can be read once"),
        {"allowed_hosts": 10},
        {"allowed_hosts": [10]},
        pytest.param({"allowed_hosts": iter(["here.example"])}, id="hosts that can be read once"),
        {"check_origin": 10},
        {"check_origin": [10]},
        pytest.param(
            {"check_origin": (text for text in ["https://here.example"])},
            id="origins that can be read once",
        ),
        {"queue": 10},
        {"queue": {"size": 10}},
        {"heartbeat": 10},
        {"heartbeat": QueueConfig()},
        {"compression": True},
    ],
    ids=str,
)
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        node(**wrong)


def test_the_bounds_of_queue_and_heartbeat_are_the_node_s_own_unless_given():
    queue, heartbeat = QueueConfig(size=3), HeartbeatConfig(interval=5.0)

    assert sockets(queue=queue, heartbeat=heartbeat)._io.queue is queue
    assert sockets()._io.queue == QueueConfig()


# --- adapters


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("pubsub", MemoryPubSub),
        ("state", MemoryState),
        ("history", MemoryHistory),
        ("offline", MemoryOffline),
        ("offline", "offline.db"),
        ("offline", True),
    ],
)
def test_what_is_no_adapter_is_named_where_the_server_is_built(what, wrong):
    with pytest.raises(ValueError, match=f"{what} must be an adapter's object"):
        Server(**{what: wrong})


# --- the name of a node


def test_a_node_is_named_for_host_process_and_chance():
    name = default_node_id()

    assert f"-{os.getpid()}-" in name
    assert name != default_node_id()
    assert node().config.node_id != node().config.node_id


@pytest.mark.parametrize("host", ["", "x" * 300, "a b\n:/", "..."])
def test_whatever_the_host_is_called_the_name_is_a_good_one(monkeypatch, host):
    monkeypatch.setattr(socket, "gethostname", lambda: host)

    name = default_node_id()

    assert node(node_id=name).config.node_id == name
    assert not name.startswith("-")


# --- what is given for a port

BROKEN = {
    "authenticator": object(),
    "access_controller": lambda meta, topic, event: True,
    "validator": object(),
    "metrics": object(),
    "logger": print,
    "tracer": object(),
    "pubsub": object(),
    "state": MemoryPubSub(),
    "history": MemoryState(),
    "offline": MemoryState(),
}


@pytest.mark.parametrize("port", BROKEN)
def test_a_server_looks_at_each_adapter_where_it_is_built(port):
    """By all ways on which one comes: keywords, and a provider of the container."""
    with pytest.raises(ValueError, match=rf"{port} must have the method \w+\(\)"):
        Server(**{port: BROKEN[port]})
    with pytest.raises(ValueError, match=rf"{port} must be .* not the class MemoryState"):
        Server(**{port: MemoryState})
    container = Container(settings=Settings())
    if hasattr(container, port):
        getattr(container, port).override(providers.Object(BROKEN[port]))
        with pytest.raises(ValueError, match=rf"{port} must have the method"):
            container.server()


async def test_the_test_kit_looks_at_what_replaces_an_adapter():
    with pytest.raises(ValueError, match=r"metrics must have the method connected\(\)"):
        async with TestHub(Server(), metrics=object()):
            """It must not come to this."""


@pytest.mark.parametrize(
    "register",
    [
        lambda server: server.on_startup(42),
        lambda server: server.on_shutdown("close"),
        lambda server: server.use(None),
        lambda server: server.hub.on_connect(42),
        lambda server: server.hub.on_queue_full(42),
        lambda server: server.use(rate_limit(object())),
        lambda server: server.use(rate_limit(TokenBucketLimiter)),
        lambda server: server.use(trace(object())),
        lambda server: server.use(validate(MarshmallowValidator)),
    ],
)
def test_what_cant_be_called_is_refused_where_it_is_registered(register):
    with pytest.raises(ValueError, match=r"call|function|must"):
        register(Server())
