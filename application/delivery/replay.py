"""The replay of stored messages to a user who is online again.

Rules of this file:

1. There is one replay per user at a time in the cluster: the claim in the store names its
   node. A claim of a dead node is taken over.
2. A replay sends the messages in order to every connection of the user, each once. A
   connection that is opened meanwhile gets all remaining messages, from the first.
3. At most ``MAX_IN_FLIGHT`` messages are in flight, each counted once for all connections. The
   first answer of any connection settles a message and removes it from the store. A message
   without an answer from any connection leaves the window and stays stored.
4. Newer messages to the user wait at the barrier until the stored ones are written, and pass
   it in FIFO order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import Replay, ReplayStart
from eyewall.application.concurrency.tasks import TaskSet, briefly
from eyewall.application.connections.registry import Connections
from eyewall.application.delivery.acked import AckedDelivery
from eyewall.application.delivery.locator import RecipientLocator
from eyewall.application.delivery.pending_acks import Outcome, PendingAcks
from eyewall.application.outbound.recipients import RecipientFilter
from eyewall.application.outbound.sender import Addressee, Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import told
from eyewall.application.ports.message import Codec, EncodedMessage, MalformedMessage, read_message
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import OfflineStore
from eyewall.domain.delivery import Plan
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, NodeId, UserId
from eyewall.domain.mailbox import StoredMessage
from eyewall.domain.report import FailureReason

ACK_TIMEOUT = 5.0
"""Seconds until the ack of a connection is overdue: the default of ``SendOptions``."""


CLAIM_TTL = 30.0
"""Seconds. A replay renews its claim with every page, which takes an ``ACK_TIMEOUT`` at most:
only a node that hangs loses it."""


PAUSE = 5.0
"""Seconds before a replay that failed, because the store was unavailable, is retried."""


MAX_IN_FLIGHT = 32
"""Most messages in flight (guarantees.md, "Delivery"). They fit a connection's queue beside
other messages, and a client that acks one by one causes no round trip for each."""


MAX_WAITING = 1000
"""Most sends that wait at the barrier for one user: as many as messages may be stored for one.
Each holds its message and its caller."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A connection of the user, and the node that has it."""

    node: NodeId
    conn_id: ConnId


class OfflineReplay:
    """Runs the replays of this node's users."""

    def __init__(
        self,
        *,
        node: NodeId,
        store: OfflineStore,
        cluster: Cluster,
        connections: Connections,
        locator: RecipientLocator,
        acks: AckedDelivery,
        pending_acks: PendingAcks,
        sender: Sender,
        codec: Codec,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._node = node
        self._store = store
        self._cluster = cluster
        self._connections = connections
        self._locate = locator
        self._acks = acks
        self._pending_acks = pending_acks
        self._sender = sender
        self._codec = codec
        self._clock = clock
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._running: dict[UserId, ReplayWindow] = {}
        self.barrier = ReplayBarrier()
        """Holds newer messages to the users with a replay."""
        cluster.on_request(Replay, self._take_replay)
        cluster.on_event(ReplayStart, self._take_start)

    def __len__(self) -> int:
        return len(self._running)

    # --- the beginning

    def begin(self, user_id: UserId) -> ReplayWindow:
        """Send the stored messages to all connections of the user that have not got them.

        Returns the running replay; one that runs already starts again from the first message.
        """
        replay = self._running.get(user_id)
        if replay is None:
            replay = self._running[user_id] = ReplayWindow(user_id)
            self._tasks.spawn(self._run(replay))
        else:
            replay.restart()
        self.barrier.close(user_id)
        return replay

    async def begin_for_others(self, user_id: UserId, tried: set[str]) -> None:
        """Begin a replay after a message was stored, if the user has connections other than
        ``tried`` by now: here, or on the node that has one of them."""
        try:
            [recipient] = await self._locate.users([user_id])
            missed = recipient.without(tried).by_node
            if self._node in missed:
                self.begin(user_id)
            elif missed:
                await self._cluster.notify_node(next(iter(missed)), ReplayStart(user_id))
        except Unavailable as error:
            self._logger.warning("replay_not_begun", error=told(error))

    # --- the replay

    async def _run(self, replay: ReplayWindow) -> None:
        try:
            while replay.must_restart:
                replay.must_restart = False
                self.barrier.close(replay.user_id)
                done = await self._try(replay)
                if not replay.must_restart:
                    replay.written.set()
                    self.barrier.open(replay.user_id)
                await replay.wait_settled()
                if not replay.must_restart and replay.is_claimed:
                    await self._release(replay.user_id)
                if not done and not replay.must_restart:
                    await self._pause(replay)
        finally:
            del self._running[replay.user_id]
            replay.written.set()
            self.barrier.open(replay.user_id)

    async def _try(self, replay: ReplayWindow) -> bool:
        """Send the stored messages; False if the store failed and a retry is needed."""
        try:
            return await self._send_all(replay)
        except Unavailable as error:
            self._logger.warning("replay_stopped", error=told(error))
            return False

    async def _send_all(self, replay: ReplayWindow) -> bool:
        user_id, after = replay.user_id, 0
        if not await self._store.waiting(user_id, after, 1, self._clock.wall()):
            return True  # the usual case costs no claim
        while not self._is_over(replay):
            holder = await self._store.claim(user_id, self._node, CLAIM_TTL)
            if holder != self._node:
                return await self._hand_over(NodeId(holder), replay)
            replay.is_claimed = True
            endpoints = await self._endpoints(user_id)
            page = await self._store.waiting(user_id, after, MAX_IN_FLIGHT, self._clock.wall())
            if not page or not endpoints:
                return True
            for position, message in page:
                after = position
                if not await self._offer(replay, message, endpoints):
                    break
        return True

    async def _endpoints(self, user_id: UserId) -> list[_Endpoint]:
        """Return the user's connections that are let in, as far as this node knows."""
        [recipient] = await self._locate.users([user_id])
        return [
            _Endpoint(node, conn_id)
            for node, conn_ids in recipient.by_node.items()
            for conn_id in conn_ids
        ]

    async def _offer(
        self, replay: ReplayWindow, message: StoredMessage, endpoints: list[_Endpoint]
    ) -> bool:
        """Wait for space in the window and send a message to the endpoints that have not got it.

        False if the replay has to restart for a new connection, or the node drains.
        """
        if not replay.misses(message.id, [endpoint.conn_id for endpoint in endpoints]):
            return True
        while not replay.has_space(message.id):
            replay.written.set()
            await replay.wait_change()
            if self._is_over(replay):
                return False
        await self._sender.ready()
        if self._is_over(replay):
            return False
        endpoints = [
            endpoint
            for endpoint in endpoints
            if self._is_current(endpoint, replay.user_id)
            and replay.may_send(message.id, endpoint.conn_id)
        ]
        if endpoints:
            self._send(replay, message, endpoints)
        return True

    def _is_over(self, replay: ReplayWindow) -> bool:
        return replay.must_restart or self._connections.draining

    def _is_current(self, endpoint: _Endpoint, user_id: UserId) -> bool:
        """Whether the connection is still the user's; another node checks its own."""
        if endpoint.node != self._node:
            return True
        conn = self._connections.get(endpoint.conn_id)
        return conn is not None and RecipientFilter(user=user_id).means(conn)

    def _send(
        self, replay: ReplayWindow, message: StoredMessage, endpoints: list[_Endpoint]
    ) -> None:
        try:
            encoded = read_message(
                self._codec, message.payload, message.priority, recipient=str(replay.user_id)
            )
            if encoded.envelope is None or encoded.envelope.id != message.id:
                raise MalformedMessage("it has another id")
        except MalformedMessage as error:
            self._logger.error("stored_message_unreadable", id=message.id, error=told(error))
            self._settle(replay, message.id)
            return
        now, deadline = self._clock.now(), None
        if message.expires_at is not None:
            deadline = now + (message.expires_at - self._clock.wall()).total_seconds()
        plan, whom = Plan(ACK_TIMEOUT, 0, 0.0, deadline), RecipientFilter(user=replay.user_id)
        replay.sent(message.id, [endpoint.conn_id for endpoint in endpoints])
        for endpoint in endpoints:
            done = partial(self._finished, replay, message.id, encoded)
            conn = self._connections.get(endpoint.conn_id)
            if conn is not None:
                sent = self._pending_acks.begin([conn], encoded, plan, whom).future
                sent.add_done_callback(partial(_pass_outcome, done))
            else:
                self._tasks.spawn(self._send_remote(endpoint, encoded, plan, whom, done))

    async def _send_remote(
        self,
        endpoint: _Endpoint,
        encoded: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter,
        done: Callable[[Outcome], None],
    ) -> None:
        done(await self._acks.to_remote(endpoint.node, endpoint.conn_id, encoded, plan, whom))

    def _finished(
        self, replay: ReplayWindow, message_id: str, encoded: EncodedMessage, outcome: Outcome
    ) -> None:
        """Apply the outcome of a message to one connection."""
        if outcome.delivered or outcome.reason is FailureReason.NACKED:
            self._settle(replay, message_id)
        else:
            full = outcome.reason is FailureReason.QUEUE_FULL
            replay.unanswered(message_id, outcome.conn_id, queue_full=full)
        if outcome.reason not in (None, FailureReason.TIMEOUT):
            # An expired message is reported when it is removed. Not awaited: a failure handler
            # may send to the user, and wait at the barrier for this replay (deadlock).
            self._tasks.spawn(
                self._sender.report(
                    encoded,
                    Addressee(outcome.conn_id, outcome.user_id),
                    outcome.reason,
                    outcome.error,
                    duration=outcome.seconds,
                )
            )

    def _settle(self, replay: ReplayWindow, message_id: str) -> None:
        """Remove an answered message from the store, once."""
        if replay.settle(message_id):
            self._tasks.spawn(self._remove(replay, message_id))

    async def _remove(self, replay: ReplayWindow, message_id: str) -> None:
        try:
            await self._store.remove(replay.user_id, message_id)
        except Unavailable as error:
            # It will be sent again, under the same id.
            self._logger.warning("answered_message_kept", id=message_id, error=told(error))
        finally:
            replay.removal_done()

    async def _pause(self, replay: ReplayWindow) -> None:
        """Wait for ``PAUSE`` seconds; restart the replay then if the user is still connected."""
        timer = self._clock.call_later(PAUSE, replay.end_pause)
        try:
            while not (replay.must_restart or replay.pause_is_over):
                await replay.wait_change()
        finally:
            timer.cancel()
            replay.pause_is_over = False
        if self._connections.of_user(replay.user_id) and not self._connections.draining:
            replay.must_restart = True

    # --- the claim

    async def _hand_over(self, holder: NodeId, replay: ReplayWindow) -> bool:
        """Have the holder of the claim send to this node's connections, too; restart here if it
        no longer has a replay. Returns True: there is no retry after a pause."""
        replay.written.set()
        self.barrier.open(replay.user_id)
        if await self._cluster.is_alive(holder):
            if await self._cluster.request(holder, Replay(replay.user_id)):
                return True
        else:
            await self._store.release(replay.user_id, holder)
        replay.must_restart = True  # the claim is free now
        return True

    async def _take_replay(self, asked: Replay, _: bytes) -> bool:
        """Another node has a connection of a user whom this one may have the claim of."""
        user_id = asked.user
        if user_id in self._running and not self._connections.draining:
            self.begin(user_id)
            return True
        await self._store.release(user_id, self._node)
        return False

    def _take_start(self, told: ReplayStart, _: bytes) -> None:
        """Another node has stored something for a user who is here by now."""
        self.begin(told.user)

    async def _release(self, user_id: UserId) -> None:
        with suppress(Unavailable):  # the claim expires by itself
            await self._store.release(user_id, self._node)

    async def close(self) -> None:
        """End the replays and release their claims; unanswered messages stay stored."""
        claimed = [user_id for user_id, replay in self._running.items() if replay.is_claimed]
        await self._tasks.close()
        # Concurrently: with a hanging store each release takes its whole time-out.
        with suppress(Unavailable):  # the claims expire by themselves
            await briefly(asyncio.gather(*(self._release(user_id) for user_id in claimed)))


def _pass_outcome(done: Callable[[Outcome], None], sent: asyncio.Future[list[Outcome]]) -> None:
    (outcome,) = sent.result()
    done(outcome)


_NO_CONNECTIONS: frozenset[ConnId] = frozenset()


class ReplayWindow:
    """The state of one user's replay: which messages were sent where, and which are in flight.

    One task waits for its changes.
    """

    def __init__(self, user_id: UserId) -> None:
        self.user_id = user_id
        self.must_restart = True
        """Whether a connection may not have got all messages: begin with the first again."""
        self.pause_is_over = False
        """Whether the pause before a retry is over."""
        self.is_claimed = False
        """Whether this node has, or had, the claim."""
        self.written = asyncio.Event()
        """Set when the first window, or all messages, were written."""
        self._sent_to: dict[str, set[ConnId]] = {}
        self._in_flight: dict[str, int] = {}
        self._settled: set[str] = set()
        self._removing = 0
        self._full: set[ConnId] = set()
        """The connections whose queue was full."""
        self._changed = asyncio.Event()

    # --- questions

    def misses(self, message_id: str, conn_ids: Collection[ConnId]) -> bool:
        """Whether one of ``conn_ids`` was not sent a message that has no answer yet."""
        sent_to = self._sent_to.get(message_id, _NO_CONNECTIONS)
        return message_id not in self._settled and any(c not in sent_to for c in conn_ids)

    def may_send(self, message_id: str, conn_id: ConnId) -> bool:
        """Whether to send a message to a connection: not twice, and not after an earlier one
        that its full queue did not take."""
        if message_id in self._settled or conn_id in self._full:
            return False
        return conn_id not in self._sent_to.get(message_id, _NO_CONNECTIONS)

    def has_space(self, message_id: str) -> bool:
        """Whether the message is in flight already, or the window has space for it."""
        return message_id in self._in_flight or len(self._in_flight) < MAX_IN_FLIGHT

    # --- events

    def sent(self, message_id: str, conn_ids: Collection[ConnId]) -> None:
        """Note that a message is about to be written to each of ``conn_ids``."""
        self._sent_to.setdefault(message_id, set()).update(conn_ids)
        self._in_flight[message_id] = self._in_flight.get(message_id, 0) + len(conn_ids)

    def unanswered(self, message_id: str, conn_id: ConnId, *, queue_full: bool) -> None:
        """Note that a connection will not answer a message; ``queue_full``: it did not get it."""
        if queue_full:
            self._full.add(conn_id)
        if message_id in self._in_flight:
            self._in_flight[message_id] -= 1
            if not self._in_flight[message_id]:
                del self._in_flight[message_id]
        self._changed.set()

    def settle(self, message_id: str) -> bool:
        """Note an answer. True for the first: the caller removes the message from the store, and
        calls ``removal_done``."""
        self._in_flight.pop(message_id, None)
        self._sent_to.pop(message_id, None)
        self._changed.set()
        if message_id in self._settled:
            return False
        self._settled.add(message_id)
        self._removing += 1
        return True

    def removal_done(self) -> None:
        """Note that a removal from the store has ended, with or without success."""
        self._removing -= 1
        self._changed.set()

    def restart(self) -> None:
        """Begin with the first message again: the user has a new connection."""
        self.must_restart = True
        self.written.clear()
        self._changed.set()

    def end_pause(self) -> None:
        """End the pause before a retry."""
        self.pause_is_over = True
        self._changed.set()

    # --- waiting

    async def wait_change(self) -> None:
        """Return when something has changed since the last call."""
        await self._changed.wait()
        self._changed.clear()

    async def wait_settled(self) -> None:
        """Return when no message is in flight or being removed, or on ``restart``."""
        while (self._in_flight or self._removing) and not self.must_restart:
            await self.wait_change()


class _WaitQueue:
    """The sends that wait for one user's replay, and whether they may proceed."""

    __slots__ = ("is_open", "waiting")

    def __init__(self) -> None:
        self.is_open = False
        self.waiting: deque[asyncio.Future[None]] = deque()


class ReplayBarrier:
    """Holds messages to users with a replay; waiters are released in FIFO order.

    Users without a replay cost nothing.
    """

    def __init__(self) -> None:
        self._queues: dict[UserId, _WaitQueue] = {}

    def __contains__(self, user_id: UserId) -> bool:
        """Whether a message to the user has to wait."""
        return user_id in self._queues

    def close(self, user_id: UserId) -> None:
        """Hold messages to the user from now on."""
        self._queues.setdefault(user_id, _WaitQueue()).is_open = False

    def open(self, user_id: UserId) -> None:
        """Release the waiters, one after the other. Idempotent."""
        queue = self._queues.get(user_id)
        if queue is not None and not queue.is_open:
            queue.is_open = True
            self._release_next(user_id, queue)

    async def wait(self, user_id: UserId) -> bool:
        """Wait until the barrier is open for the user; False at once if ``MAX_WAITING`` sends
        wait already."""
        queue = self._queues.get(user_id)
        if queue is None:
            return True
        if len(queue.waiting) >= MAX_WAITING:
            return False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):  # removed by ``_release_next`` already
                    queue.waiting.remove(waiter)
            else:
                self._release_next(user_id, queue)  # it was released and can't use it
            raise
        self._release_next(user_id, queue)
        return True

    def _release_next(self, user_id: UserId, queue: _WaitQueue) -> None:
        if not queue.is_open:
            return
        while queue.waiting:
            waiter = queue.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        if self._queues.get(user_id) is queue:
            del self._queues[user_id]
