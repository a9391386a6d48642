"""The composition root of a node: every use case gets its dependencies here, by name."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import replace

from eyewall.application.cluster.packet import PACKET_SLACK
from eyewall.application.cluster.peers import Cluster
from eyewall.application.concurrency.call_guard import CallGuard
from eyewall.application.concurrency.stalls import StallLog, Stalls
from eyewall.application.concurrency.threads import Threads
from eyewall.application.config import NodeConfig, Ports
from eyewall.application.connections.hooks import Hooks
from eyewall.application.connections.rate_limits import RateLimits
from eyewall.application.connections.registry import BroadcastGroups, Connection, Connections
from eyewall.application.connections.stats import Stats
from eyewall.application.connections.token_expiry import TokenExpiry
from eyewall.application.delivery.acked import AckedDelivery
from eyewall.application.delivery.direct import DirectMessages
from eyewall.application.delivery.late_acks import LateAcks
from eyewall.application.delivery.locator import RecipientLocator
from eyewall.application.delivery.offline import Offline, OfflineParts
from eyewall.application.delivery.pending_acks import PendingAcks
from eyewall.application.delivery.replay import OfflineReplay
from eyewall.application.delivery.retries import Retries
from eyewall.application.dispatch.commands import Commands
from eyewall.application.dispatch.receiver import MessageAuthorization, Receiver
from eyewall.application.dispatch.replies import Responder
from eyewall.application.dispatch.router import Router
from eyewall.application.dispatch.token_refresh import TokenRefresh
from eyewall.application.hub.hub import Hub
from eyewall.application.lifecycle.cluster_state import ClusterStateSync
from eyewall.application.lifecycle.drain import ShutdownNotice
from eyewall.application.lifecycle.opening import ConnectionLifecycle, Welcome
from eyewall.application.lifecycle.reconciliation import StateReconciler
from eyewall.application.lifecycle.remote import RemoteConnections
from eyewall.application.lifecycle.resume import Resumer
from eyewall.application.lifecycle.sessions import Sessions
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.outbound.failures import Failures
from eyewall.application.outbound.held_members import HeldMembers
from eyewall.application.outbound.sender import Ids, Sender
from eyewall.application.ports.logging import guarded
from eyewall.application.ports.plugins import method
from eyewall.application.rooms.announcements import Announcements
from eyewall.application.rooms.divergence import Divergences
from eyewall.application.rooms.history import RoomHistory
from eyewall.application.rooms.membership import JoinAuthorization, RoomMembership
from eyewall.application.rooms.moderation import RoomAdmin
from eyewall.application.rooms.presence import Presences
from eyewall.application.rooms.publisher import Publisher
from eyewall.application.rooms.seats import Seats
from eyewall.application.rooms.stream import Streams
from eyewall.domain.commands import commands_of
from eyewall.domain.connection import DisconnectReason


class Parts:
    """The use cases of one node, and the adapters that they work with."""

    def __init__(self, config: NodeConfig, ports: Ports, hub: Hub | None = None) -> None:
        """``hub`` is what handlers get; None makes a new one, which calls these use cases."""
        self.config = config
        self.ports = ports
        self.logger = guarded(ports.logger)
        self.divergences = Divergences()
        self._ports = guarded_ports(
            ports, CallGuard(self.logger), self.divergences.note_state_failure
        )
        self.hub = Hub(self) if hub is None else hub
        self._build_watch()
        self._build_sending()
        self._build_fanout()
        self._build_streams()
        self._build_presence()
        self._build_rooms()
        locator = self._build_messages()
        self._build_operations(locator)
        self._build_cluster_state()
        self._register_commands()
        self._build_receiving()
        self.stalls.on_stall(self.stall_log.stalled)  # last: reading and writing come first

    def _build_watch(self) -> None:
        """Counters, hooks, failure handlers and the detection of stalls."""
        ports, logger = self._ports, self.logger
        self.stats = Stats(ports.clock, ports.metrics, logger)
        self.stalls = ports.stalls or Stalls(ports.clock)
        self.stalls.on_lag(self.stats.metrics.loop_lag)
        self.stall_log = StallLog(ports.clock, logger, self.stats.happened)
        self.hooks = Hooks(logger)
        self.failures = Failures(logger, self.stats)

    def _build_sending(self) -> None:
        """Sending to the connections of this node, and receiving their acks."""
        config, ports, clock = self.config, self._ports, self._ports.clock
        # Handlers of ended connections may still run beside those of the workers.
        self.threads = Threads(2 * config.workers)
        self.router = Router(self.threads)
        self.connections = Connections(
            writer=ports.writer,
            clock=clock,
            hooks=self.hooks,
            stats=self.stats,
            logger=self.logger,
            max_connections=config.max_connections,
            max_per_address=config.max_connections_per_address,
        )
        self.sender = Sender(
            codec=ports.codec,
            writer=ports.writer,
            stats=self.stats,
            failures=self.failures,
            ids=Ids(f"{secrets.token_hex(5)}-"),
        )
        self.connections.sender = self.sender
        self.pending_acks = PendingAcks(
            sender=self.sender, clock=clock, stats=self.stats, stalls=self.stalls
        )

    def _build_fanout(self) -> None:
        """The cluster, and fan-out within it."""
        config, ports = self.config, self._ports
        self.cluster = Cluster(
            node=config.node_id,
            prefix=config.cluster_channel,
            bus=ports.pubsub,
            state=ports.state,
            clock=ports.clock,
            logger=self.logger,
            metrics=self.stats.metrics,
            happened=self.stats.happened,
            stalls=self.stalls,
            lease=config.lease,
            max_payload=config.max_message_size + PACKET_SLACK,
        )
        self.broadcast_groups = BroadcastGroups(ports.writer)
        self.held_members = HeldMembers(
            connections=self.connections, sender=self.sender, queue=config.queue
        )
        self.fanout = FanOut(
            cluster=self.cluster,
            broadcast_groups=self.broadcast_groups,
            held_members=self.held_members,
            connections=self.connections,
            sender=self.sender,
            codec=ports.codec,
        )

    def _build_streams(self) -> None:
        config, ports = self.config, self._ports
        self.streams = Streams(
            history=ports.history,
            state=ports.state,
            connections=self.connections,
            broadcast_groups=self.broadcast_groups,
            held_members=self.held_members,
            sender=self.sender,
            codec=ports.codec,
            clock=ports.clock,
            logger=self.logger,
            stats=self.stats,
        )
        self.publisher = Publisher(
            node=config.node_id,
            history=ports.history,
            streams=self.streams,
            fanout=self.fanout,
            cluster=self.cluster,
            sender=self.sender,
            codec=ports.codec,
            clock=ports.clock,
            logger=self.logger,
        )
        self.room_history = RoomHistory(
            history=ports.history,
            state=ports.state,
            codec=ports.codec,
            clock=ports.clock,
            logger=self.logger,
        )

    def _build_presence(self) -> None:
        """Presence, and sessions with their grace period."""
        config, ports = self.config, self._ports
        self.presences = Presences(
            node=config.node_id,
            state=ports.state,
            connections=self.connections,
            fanout=self.fanout,
            clock=ports.clock,
            stalls=self.stalls,
            logger=self.logger,
            grace=config.presence_grace,
            divergences=self.divergences,
        )
        self.sessions = Sessions(
            node=config.node_id,
            cluster=self.cluster,
            state=ports.state,
            connections=self.connections,
            clock=ports.clock,
            stalls=self.stalls,
            logger=self.logger,
            ttl=config.session_ttl,
        )

    def _build_rooms(self) -> None:
        """Membership of rooms, and its moderation."""
        config, ports = self.config, self._ports
        self.seats = Seats(
            node=config.node_id,
            state=ports.state,
            clock=ports.clock,
            implicit=config.implicit_rooms,
            invite_grace=config.session_ttl,
            presence_grace=config.presence_grace,
            divergences=self.divergences,
        )
        announcements = Announcements(
            seats=self.seats,
            fanout=self.fanout,
            clock=ports.clock,
            stalls=self.stalls,
            logger=self.logger,
            grace=config.presence_grace,
        )
        self.rooms = RoomMembership(
            seats=self.seats,
            cluster=self.cluster,
            broadcast_groups=self.broadcast_groups,
            held_members=self.held_members,
            announcements=announcements,
            streams=self.streams,
            sender=self.sender,
            hooks=self.hooks,
            logger=self.logger,
            authorization=JoinAuthorization(ports.access_controller),
        )
        self.rooms.on_leave(self.presences.on_leave)
        self.room_admin = RoomAdmin(
            node=config.node_id,
            state=ports.state,
            cluster=self.cluster,
            connections=self.connections,
            rooms=self.rooms,
            seats=self.seats,
            streams=self.streams,
            room_history=self.room_history,
            fanout=self.fanout,
            clock=ports.clock,
            logger=self.logger,
        )

    def _build_messages(self) -> RecipientLocator:
        """Sending by connection, user or room; returns the locator."""
        config, ports = self.config, self._ports
        locator = RecipientLocator(
            node=config.node_id,
            state=ports.state,
            cluster=self.cluster,
            connections=self.connections,
            broadcast_groups=self.broadcast_groups,
            logger=self.logger,
        )
        acks = AckedDelivery(
            node=config.node_id,
            cluster=self.cluster,
            connections=self.connections,
            pending_acks=self.pending_acks,
            sender=self.sender,
            publisher=self.publisher,
            codec=ports.codec,
            clock=ports.clock,
        )
        self.messages = DirectMessages(
            node=config.node_id,
            cluster=self.cluster,
            connections=self.connections,
            locator=locator,
            acks=acks,
            sender=self.sender,
            codec=ports.codec,
            clock=ports.clock,
        )
        self.stored = self._stored(locator, acks)
        self.offline = Offline(
            stored=self.stored,
            default=config.offline_default,
            messages=self.messages,
            sender=self.sender,
            codec=ports.codec,
            stats=self.stats,
            clock=ports.clock,
            logger=self.logger,
        )
        self.retries = Retries(
            offline=self.offline,
            clock=ports.clock,
            new_id=self.sender.new_id,
            luck=random.random,
        )
        return locator

    def _build_operations(self, locator: RecipientLocator) -> None:
        """Resuming, ending and expiry of connections."""
        config, ports = self.config, self._ports
        self.resumer = Resumer(
            rooms=self.rooms,
            sessions=self.sessions,
            streams=self.streams,
            history=ports.history,
            sender=self.sender,
            clock=ports.clock,
            stalls=self.stalls,
            free="join" in commands_of(config.client_commands),
        )
        self.operations = RemoteConnections(
            node=config.node_id,
            state=ports.state,
            cluster=self.cluster,
            connections=self.connections,
            rooms=self.rooms,
            sessions=self.sessions,
            locator=locator,
            hooks=self.hooks,
            logger=self.logger,
            max_per_user=config.max_connections_per_user,
        )
        self.expiry = TokenExpiry(self.connections, ports.clock, self.stalls)

    def _build_cluster_state(self) -> None:
        """Presence and seats of connections in the state, and their reconciliation."""
        ports = self._ports
        self.cluster_state = ClusterStateSync(
            connections=self.connections,
            presences=self.presences,
            rooms=self.rooms,
            seats=self.seats,
            expiry=self.expiry,
            operations=self.operations,
            pending_acks=self.pending_acks,
            logger=self.logger,
            replays=None if self.stored is None else self.stored.replays,
        )
        self.sessions.change_identity = self.cluster_state.change_meta
        self.connections.on_end(self._ended)
        self.connections.after_end(self.cluster_state.leave)
        self.reconciler = StateReconciler(
            node=self.config.node_id,
            divergences=self.divergences,
            reconcile=self.cluster_state.reconcile,
            state=ports.state,
            connections=self.connections,
            seats=self.seats,
            clock=ports.clock,
            logger=self.logger,
            luck=random.random,
        )
        self.cluster.on_lapse(self.reconciler.restore)

    def _register_commands(self) -> None:
        Commands(
            connections=self.connections,
            rooms=self.rooms,
            room_admin=self.room_admin,
            presences=self.presences,
            fanout=self.fanout,
            publisher=self.publisher,
            room_history=self.room_history,
            resumer=self.resumer,
            token_refresh=TokenRefresh(
                connections=self.connections,
                expiry=self.expiry,
                authenticator=self._ports.authenticator,
                clock=self._ports.clock,
                logger=self.logger,
            ),
        ).register(self.router, commands_of(self.config.client_commands))

    def _stored(self, locator: RecipientLocator, acks: AckedDelivery) -> OfflineParts | None:
        """Return the use cases of offline storage; None without an offline store."""
        config, ports = self.config, self._ports
        if ports.offline is None:
            return None
        late_acks = LateAcks(ports.offline, self.logger)
        self.pending_acks.late_acks = late_acks
        replays = OfflineReplay(
            node=config.node_id,
            store=ports.offline,
            cluster=self.cluster,
            connections=self.connections,
            locator=locator,
            acks=acks,
            pending_acks=self.pending_acks,
            sender=self.sender,
            codec=ports.codec,
            clock=ports.clock,
            logger=self.logger,
        )
        return OfflineParts(ports.offline, replays, late_acks)

    def _build_receiving(self) -> None:
        config, ports = self.config, self._ports
        self.replies = Responder(self.sender, self.failures, self.stats, self.logger)
        self.receiver = Receiver(
            hub=self.hub,
            connections=self.connections,
            router=self.router,
            replies=self.replies,
            pending_acks=self.pending_acks,
            hooks=self.hooks,
            stats=self.stats,
            clock=ports.clock,
            logger=self.logger,
            tell_error=self.operations.tell_error,
            authorization=MessageAuthorization(ports.access_controller, ports.validator),
            limits=None if ports.limiter is None else RateLimits(method(ports.limiter, "allow")),
            workers=config.workers,
            worker_queue=config.worker_queue,
            lane_queue=config.lane_queue,
        )
        self.shutdown_notice = ShutdownNotice(self.connections, self.sender, self.logger)
        self.transport_events = ConnectionLifecycle(
            node=config.node_id,
            connections=self.connections,
            received=self.receiver.received,
            presences=self.presences,
            rooms=self.rooms,
            operations=self.operations,
            expiry=self.expiry,
            hooks=self.hooks,
            sender=self.sender,
            resumer=self.resumer,
            logger=self.logger,
            authenticator=ports.authenticator,
            welcome=Welcome(config.heartbeat, config.max_message_size, f"eyewall/{config.version}"),
            replays=None if self.stored is None else self.stored.replays,
        )

    def _ended(self, conn: Connection, reason: DisconnectReason) -> None:
        """Update the use cases in the same step that ends a connection, without a wait."""
        self.sessions.ended(conn, reason)
        self.rooms.ended(conn)
        self.receiver.ended(conn)
        self.pending_acks.lost(conn)
        self.sender.gaps.forget(conn)
        self.resumer.drained(conn)
        self.expiry.forget(conn)


def guarded_ports(ports: Ports, guard: CallGuard, on_away: Callable[[], None]) -> Ports:
    """Return the ports with a deadline for each call of the bus and the stores."""
    return replace(
        ports,
        pubsub=guard.bus(ports.pubsub),
        state=guard.state(ports.state, on_away),
        history=guard.history(ports.history),
        offline=None if ports.offline is None else guard.offline(ports.offline),
    )
