"""Builds a node and its WebSocket gateway from the options of a server."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from tornado.routing import Matcher, Rule

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.clock.system import SystemClock
from eyewall.adapters.codec.json import JsonCodec
from eyewall.adapters.codec.msgpack import MsgpackCodec
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.observe.logs import make_logger
from eyewall.adapters.state.memory import MemoryState
from eyewall.adapters.web.gateway import WebSocketGateway
from eyewall.adapters.web.http.origin import Hosts
from eyewall.adapters.web.http.refusals import RefusalLog
from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.config import NodeConfig, Ports
from eyewall.application.node import Node
from eyewall.application.ports import conformance
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.message import Codec
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.transport import MessageWriter, TransportEvents
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.duration import count, seconds
from eyewall.domain.handshake import refuse_with
from eyewall.domain.identity import NodeId
from eyewall.domain.identity import names as check_names
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import STORE
from eyewall.server.ops import check_ops_address
from eyewall.server.options import Options
from eyewall.version import VERSION

_CONFIGS: dict[str, type] = {
    "queue": QueueConfig,
    "heartbeat": HeartbeatConfig,
    "compression": CompressionConfig,
}


class Transport(Protocol):
    """What a server needs of the sockets that its node is connected by."""

    transport_events: TransportEvents
    """What receives the events of the connections."""

    def routes(self, path: str) -> list[Any]:
        """Return Tornado rules that accept clients at ``path``."""

    def start(self) -> None:
        """Start on the running event loop."""

    @property
    def hosts(self) -> Hosts | None:
        """The hosts that are served; None for all."""

    @property
    def refusals(self) -> RefusalLog | None:
        """What is told of each refused handshake."""

    def refuse_new(self) -> None:
        """Accept no more clients. Pending handshakes are told when to come back."""

    async def drain_input(self) -> None:
        """Return when the input that clients have sent so far is read and passed on."""

    async def stop(self, within: float) -> None:
        """Close all connections, at most ``within`` seconds long, and stop."""


def default_node_id() -> str:
    """Return host name, process id and a random part: unique without configuration."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-.") or "node"
    return f"{host[:64]}-{os.getpid()}-{secrets.token_hex(3)}"


def own_node_id(options: Options) -> NodeId:
    """Return the node id of the options, or a new one."""
    return NodeId(default_node_id() if options.node_id is None else options.node_id)


def assemble(options: Options) -> tuple[Node, Transport]:
    """Return a node and its WebSocket gateway; raises ``ValueError`` for a wrong option."""
    _check_given(options)
    logger = make_logger() if options.logger is None else options.logger
    clock: Clock = SystemClock()
    stalls = Stalls(clock)
    codec = JsonCodec()
    checked = {
        "queue": options.queue or QueueConfig(),
        "heartbeat": options.heartbeat or HeartbeatConfig(),
        "max_message_size": count(options.max_message_size, "max_message_size"),
        "handshake_timeout": seconds(options.handshake_timeout, "handshake_timeout", positive=True),
        "refuse_with": refuse_with(options.refuse_with),
        "batch_budget": max(1, count(options.worker_queue, "worker_queue") // 4),
    }
    own = {"codecs": [codec, MsgpackCodec()], "clock": clock, "logger": logger, "stalls": stalls}
    gateway = WebSocketGateway(**options.for_part(WebSocketGateway) | checked | own)
    node = build_node(
        options, gateway.outbound, clock=clock, codec=codec, logger=logger, stalls=stalls
    )
    gateway.transport_events = node.transport_events
    gateway.refusals.count = node.parts.stats.refused
    return node, gateway


def build_node(
    options: Options,
    writer: MessageWriter,
    *,
    clock: Clock,
    codec: Codec,
    logger: Logger,
    stalls: Stalls | None = None,
) -> Node:
    """Return the node that ``options`` describe, for any transport.

    ``stalls`` measures how long the loop stood still; None does not. Raises ``ValueError`` for a
    wrong option.
    """
    _check_given(options)
    # Not "or": an adapter may have a length of 0, and is then false.
    defaults = {
        "pubsub": MemoryPubSub() if options.pubsub is None else options.pubsub,
        "state": _private_state(stalls) if options.state is None else options.state,
        "history": MemoryHistory() if options.history is None else options.history,
    }
    own = {
        "writer": writer,
        "clock": clock,
        "codec": codec,
        "logger": logger,
        "stalls": stalls,
    }
    ports = Ports(**options.for_part(Ports) | defaults | own)
    return Node(_config(options), ports)


def _private_state(stalls: Stalls | None) -> MemoryState:
    """Return a state for this node only. Its leases don't expire while the loop stands still."""
    return MemoryState() if stalls is None else MemoryState(clock=stalls.awake)


def _check_given(options: Options) -> None:
    """Raise ``ValueError`` for an adapter that lacks a method or is a class instead of an object,
    and for an option of a wrong type: here, not at the first message."""
    for what in conformance.PORTS:
        given = getattr(options, what, None)
        if isinstance(given, str | Path | bool):
            raise ValueError(f"{what} must be an adapter's object, not {given!r:.80}")
        conformance.check(what, given)
    for what, kind in _CONFIGS.items():
        if not isinstance(given := getattr(options, what), kind | None):
            raise ValueError(f"{what} must be None or a {kind.__name__}, not {given!r:.80}")
    refuse_with(options.refuse_with)
    if not isinstance(options.start_page, bool):
        raise ValueError(f"start_page must be True or False, not {options.start_page!r:.80}")
    check_pages(options.pages)
    check_ops_address(options.ops_host, options.ops_port)
    for what in ("trusted_proxies", "allowed_hosts", "check_origin"):
        given = getattr(options, what)
        if given is None or (what == "check_origin" and callable(given)):
            continue
        if not isinstance(given, Collection):  # an iterator neither: it can be read only once
            raise ValueError(f"{what} must be a list of strings, not {given!r:.80}")
        check_names(given, what)


def check_pages(pages: Collection[Any]) -> None:
    """Raise ``ValueError`` unless ``pages`` is a collection of Tornado rules: a single pair, for
    example, is not."""
    given: object = pages
    if isinstance(given, str | bytes | dict) or not isinstance(given, Collection):
        raise ValueError(f"pages must be a list of Tornado rules, not {given!r:.80}")
    for page in pages:
        is_short = isinstance(page, tuple | list) and 2 <= len(page) <= 4
        if not isinstance(page, Rule) and not (is_short and isinstance(page[0], str | Matcher)):
            raise ValueError(f"pages must be Tornado rules (pattern, handler), not {page!r:.80}")


def _config(options: Options) -> NodeConfig:
    heartbeat = options.heartbeat or HeartbeatConfig()
    own = {
        "node_id": own_node_id(options),
        "queue": options.queue or QueueConfig(),
        "heartbeat": seconds(heartbeat.interval, "interval"),
        "version": VERSION,
    }
    config = NodeConfig(**options.for_part(NodeConfig) | own)
    if config.offline_default == STORE and options.offline is None:
        raise ValueError("offline_default='store' needs a store: offline=...")
    return config
