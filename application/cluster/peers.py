"""The other nodes of the cluster: events to them, requests to them, and their leases.

Rules of this file:

1. A node subscribes to its own channel, the channel for all nodes, and the channels of rooms
   that have members here.
2. A packet from the bus is never published again.
3. A request has a deadline. A node that does not answer in time raises ``NodeTimeout``: it may
   have executed the request or not.
4. An event to many nodes is sent without confirmation. If the bus is unavailable, the event is
   counted as unsent; the local delivery before it stands.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, TypeVar, cast

from eyewall.application.cluster.packet import BadPacket, Packet, unpack
from eyewall.application.cluster.protocol import Event, Request
from eyewall.application.cluster.subscriptions import BusSubscriptions
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.concurrency.tasks import TaskSet, briefly, is_end
from eyewall.application.concurrency.timers import TimerQueue
from eyewall.application.ports.bus import CountsSubscribers, PubSub
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.logging import shown, told
from eyewall.application.ports.message import MalformedMessage
from eyewall.application.ports.plugins import Logger, Metrics
from eyewall.application.ports.stores import StateStore, has_methods_of
from eyewall.domain.errors import EyewallError, Refused, Unavailable, from_code
from eyewall.domain.identity import NodeId, RoomId
from eyewall.domain.report import Incident
from eyewall.domain.telling import tell

MOST_REQUESTS = 10_000
"""Requests of other nodes that may be in flight here; more are refused, to bound memory."""


CALL_TIMEOUT = 5.0
"""Seconds for a request whose answer does not depend on a client."""


_CALL, _REPLY = "call", "reply"


E = TypeVar("E", bound=Event)
R = TypeVar("R", bound=Request)


class NodeTimeout(Unavailable):
    """A node did not answer in time."""


class Cluster:
    """Sends events and requests to the other nodes, receives theirs, and renews the lease."""

    def __init__(
        self,
        *,
        node: NodeId,
        prefix: str,
        bus: PubSub,
        state: StateStore,
        clock: Clock,
        logger: Logger,
        metrics: Metrics,
        happened: Callable[[Incident], None],
        stalls: Stalls,
        lease: float,
        max_payload: int,
    ) -> None:
        self.node = node
        self._prefix = prefix
        self._bus = bus
        self._counts = (
            cast("CountsSubscribers", bus) if has_methods_of(bus, CountsSubscribers) else None
        )
        self._state = state
        self._clock = clock
        self._logger = logger
        self._metrics = metrics
        self._happened = happened
        self._lease = lease
        self._max_payload = max_payload
        self._event_handlers: dict[str, Callable[[Mapping[str, Any], bytes], None]] = {}
        self._request_handlers: dict[str, Callable[[Mapping[str, Any], bytes], Awaitable[Any]]] = {}
        self._channels = BusSubscriptions(bus, self._heard, logger)
        self._requests: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        # A random start: a late answer to a former node of this name must not match a request.
        self._numbers = count(secrets.randbits(48))
        self._deadlines = TimerQueue(clock, stalls)
        stalls.on_stall(self._stalled)
        self._tasks = TaskSet(logger)
        self._timer: Timer | None = None
        self._renewing: asyncio.Task[Any] | None = None
        self._renewed = 0.0
        self._on_lapse: Callable[[], Awaitable[None]] | None = None
        self.running = False
        """Whether the node has started and not yet stopped."""
        self._away = False

    # --- handlers

    def on_event(self, kind: type[E], take: Callable[[E, bytes], None]) -> None:
        """Register ``take(event, payload)``, a plain function, for the events of a kind."""
        self._event_handlers[kind.kind] = lambda header, payload: take(kind.read(header), payload)

    def on_request(self, kind: type[R], answer: Callable[[R, bytes], Awaitable[Any]]) -> None:
        """Register ``answer(request, payload)``, a coroutine function, for the requests of a
        kind. Its result is sent as JSON."""

        async def read(header: Mapping[str, Any], payload: bytes) -> Any:
            return await answer(kind.read(header), payload)

        self._request_handlers[kind.kind] = read

    # --- start, stop and lease

    async def start(self) -> None:
        """Take the lease and subscribe to the node's channels. Raises ``Unavailable``."""
        self.running = True
        self._renewed = self._clock.now()
        await self._renew_lease()
        await self._channels.acquire(self._of_node(self.node))
        await self._channels.acquire(self._all)
        self._arm()

    async def stop(self) -> None:
        """Unsubscribe, fail the requests in flight, and release the node's entries in the state."""
        self.running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()
        try:
            await briefly(self._channels.close())
        except Unavailable as error:
            self._logger.warning("bus_not_left", error=told(error))
        for _, future in self._requests.values():
            if not future.done():
                future.set_exception(NodeTimeout("the node is shutting down"))
        self._requests.clear()
        self._deadlines.close()
        try:
            await briefly(self._state.release(self.node, self._clock.wall()))
        except Unavailable as error:
            self._logger.warning("release_failed", error=told(error))

    def on_lapse(self, step: Callable[[], Awaitable[None]]) -> None:
        """Register ``step``, awaited when the lease is renewed after it may have lapsed: the
        state may have dropped the node's entries."""
        self._on_lapse = step

    def _arm(self) -> None:
        """Renew the lease every third of its length: two renewals in a row may fail."""
        self._timer = self._clock.call_later(self._lease / 3, self._renew_soon)

    def _renew_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # One renewal at a time: tasks must not pile up while the state does not answer.
        if self._renewing is None or self._renewing.done():
            self._renewing = self._spawn(self._renew_lease())
        self._arm()

    def _stalled(self, _: float) -> None:
        """Renew the lease after a stall: other nodes may take this node for dead."""
        if self.running:
            self._renew_soon()

    async def _renew_lease(self) -> list[NodeId]:
        """Renew the lease; return the nodes that are alive, none if this node has stopped."""
        if not self.running:
            return []
        asked = self._clock.now()
        alive = await self._state.renew(self.node, self._lease)
        # The time of the answer counts: the call may have been in flight for long.
        lapsed = self._clock.now() - self._renewed >= self._lease
        self._renewed = asked
        if lapsed and self._on_lapse is not None:
            self._logger.warning("lease_had_lapsed", seconds=self._lease)
            self._spawn(self._on_lapse())
        return alive

    # --- channels

    @property
    def _all(self) -> str:
        return f"{self._prefix}:all"

    def _of_node(self, node: str) -> str:
        return f"{self._prefix}:node:{node}"

    def _of_room(self, room_id: str) -> str:
        return f"{self._prefix}:room:{room_id}"

    async def hear_room(self, room_id: RoomId) -> None:
        """Subscribe to the room's channel; returns when messages published from now on arrive here.

        Raises ``Unavailable``.
        """
        await self._channels.acquire(self._of_room(room_id))

    def leave_room(self, room_id: RoomId) -> None:
        """Release one ``hear_room``; the last release ends the subscription."""
        self._channels.release(self._of_room(room_id))

    # --- events

    async def notify_all(self, event: Event, payload: bytes = b"") -> None:
        """Send an event to all nodes. An unavailable bus is counted, not raised."""
        await self._spread(self._all, event, payload)

    async def notify_room(self, room_id: str, event: Event, payload: bytes = b"") -> None:
        """Send an event to the nodes with members in the room. An unavailable bus is counted, not
        raised."""
        await self._spread(self._of_room(room_id), event, payload)

    async def notify_node(self, node: str, event: Event, payload: bytes = b"") -> None:
        """Send an event to one node; raises ``Unavailable`` if the bus is unavailable."""
        await self._publish(self._of_node(node), event.kind, event.header, payload)

    async def _spread(self, channel: str, event: Event, payload: bytes) -> None:
        try:
            await self._publish(channel, event.kind, event.header, payload)
        except Unavailable as error:
            self._happened(Incident.UNSENT)
            if not self._away:  # once per outage, not once per message
                self._away = True
                self._logger.warning("bus_away", error=told(error))
        else:
            self._away = False

    async def _publish(
        self, channel: str, kind: str, header: Callable[[], dict[str, Any]], payload: bytes = b""
    ) -> None:
        if self._counts is not None:
            # A bus in memory knows its subscribers: without other ones nothing is encoded.
            own = 1 if self._channels.is_subscribed(channel) else 0
            if self._counts.listeners(channel) <= own:
                return
        packet = Packet(self.node, kind, header(), payload)
        published = self._bus.publish(channel, packet.pack())
        if inspect.isawaitable(published):
            await published
        self._metrics.published(1)

    # --- requests

    async def request(
        self,
        node: str,
        request: Request,
        payload: bytes = b"",
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> Any:
        """Send a request to another node; return its result, or raise the error it answers with.

        Raises ``NodeTimeout`` if the node does not answer within ``timeout`` seconds, and
        ``Unavailable`` if the bus is unavailable.
        """
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests[number] = (node, future)
        until = self._clock.now() + timeout
        deadline = self._deadlines.at(until, lambda: _time_out(future, node))
        try:
            asked = {"id": number, "op": request.kind, "args": request.header()}
            await self._publish(self._of_node(node), _CALL, lambda: asked, payload)
            return await future
        finally:
            deadline.cancel()
            self._requests.pop(number, None)

    async def is_alive(self, node: str) -> bool:
        """Whether the node holds its lease. Raises ``Unavailable``."""
        return node in await self._renew_lease()

    async def others(self) -> list[NodeId]:
        """Return the nodes that hold their lease, without this one. Raises ``Unavailable``."""
        return [node for node in await self._renew_lease() if node != self.node]

    # --- packets from the bus

    def _heard(self, data: bytes) -> None:
        """Handle a packet. Never raises: the bus is a trust boundary."""
        try:
            packet = unpack(data, max_payload=self._max_payload)
            if packet.node == self.node or not self.running:
                return
            self._metrics.consumed(1)
            if packet.kind == _CALL:
                self._requested(packet)
            elif packet.kind == _REPLY:
                self._replied(packet)
            elif (take := self._event_handlers.get(packet.kind)) is not None:
                take(packet.header, packet.payload)
            else:
                raise BadPacket(f"unknown kind {packet.kind!r:.40}")
        except MalformedMessage as error:
            self._bad(error)
        except BaseException as error:  # (the bus must go on)
            self._happened(Incident.BAD_PACKETS)
            self._logger.error("packet_failed", error=shown(error), exc_info=error)

    def _bad(self, error: MalformedMessage) -> None:
        self._happened(Incident.BAD_PACKETS)
        self._logger.warning("bad_packet", error=told(error))

    def _requested(self, packet: Packet) -> None:
        header = packet.header
        number, op, args = header["id"], header["op"], header["args"]
        answer = self._request_handlers.get(op)
        if answer is None or not isinstance(args, dict) or len(self._tasks) >= MOST_REQUESTS:
            raise BadPacket(f"can't answer {op!r:.40}")
        self._spawn(self._answer(packet.node, number, answer(args, packet.payload)))

    async def _answer(self, node: str, number: Any, answer: Awaitable[Any]) -> None:
        reply: dict[str, Any] = {"id": number}
        try:
            reply["result"] = await answer
        except MalformedMessage as error:
            self._bad(error)
            reply["error"] = {"code": "unavailable", "text": "the question can't be read"}
        except (Refused, Unavailable) as error:
            known = tell(error)
            reply["error"] = {**known.details, "code": known.code, "text": known.text}
        except BaseException as error:
            if is_end(error):
                raise
            reply["error"] = self._failed(error)
        try:
            await self._publish(self._of_node(node), _REPLY, lambda: reply)
        except (TypeError, ValueError, RecursionError) as error:
            # The reply can't be encoded; the other node gets a short error, and no time-out.
            brief = {name: reply.get("error", {}).get(name) for name in ("code", "text")}
            refused = brief["code"] is not None
            reply = {"id": number, "error": brief if refused else self._failed(error)}
            await self._publish(self._of_node(node), _REPLY, lambda: reply)

    def _failed(self, error: BaseException) -> dict[str, str]:
        self._logger.error("answer_failed", error=shown(error), exc_info=error)
        return {"code": "unavailable", "text": "the other node failed"}

    def _replied(self, packet: Packet) -> None:
        asked, future = self._requests.get(packet.header["id"], ("", None))
        if future is None or future.done() or asked != packet.node:
            return  # late, or not from the node that was asked
        error = packet.header.get("error")
        if error is None:
            future.set_result(packet.header.get("result"))
        else:
            future.set_exception(from_code(error["code"], error["text"], error))

    def _spawn(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        return self._tasks.spawn(self._quietly(work))

    async def _quietly(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except EyewallError as error:
            self._logger.warning("cluster_task_failed", error=told(error))


def _time_out(future: asyncio.Future[Any], node: str) -> None:
    if not future.done():
        future.set_exception(NodeTimeout(f"node {node} did not answer in time"))
