"""What was stored for a user goes out when the user is there again.

Rules of this file:

1. One replay per user at a time in the whole cluster: the store's claim says whose. A
   claim of a node that is dead is taken over.
2. Messages go in order to every connection that the user has, each of them once in a
   replay. Who comes in meanwhile gets all that is left, from the first.
3. ``WINDOW`` messages may be unanswered at a time; the first answer of any connection
   frees a message's place and removes it, and so does the time-out, which leaves it stored.
4. Newer messages to the user wait in line until the stored ones have been written.


One user's replay as it stands: what was sent to whom, and what is unanswered.

A message takes one place, however many connections it goes to. Its first answer settles
it; when none has come from anybody, its place is free and it stays stored.


Lines in which newer messages to a user wait until the stored ones have gone out.

Who waits goes on in the order of coming, and nobody who comes later goes before.
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
"""Seconds that a connection has to answer, as by default for what is sent directly."""


CLAIM_TTL = 30.0
"""Seconds: a replay renews its claim with every page, which takes an ``ACK_TIMEOUT`` at
most; only a node that hangs loses it."""


PAUSE = 5.0
"""Seconds before a replay that the store did not let begin is tried again."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A connection of the user, and the node that has it."""

    node: NodeId
    conn_id: ConnId


class OfflineReplay:
    """The replays of this node."""

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
        self.lines = ReplayBarrier()
        cluster.on_request(Replay, self._take_replay)
        cluster.on_event(ReplayStart, self._take_start)

    def __len__(self) -> int:
        return len(self._running)

    # --- who has come

    def begin(self, user_id: UserId) -> ReplayWindow:
        """Have what is stored for the user go to all who have not got it."""
        replay = self._running.get(user_id)
        if replay is None:
            replay = self._running[user_id] = ReplayWindow(user_id)
            self._tasks.spawn(self._run(replay))
        else:
            replay.begin_again()
        self.lines.shut(user_id)
        return replay

    async def look_again(self, user_id: UserId, tried: set[str]) -> None:
        """Something was stored: begin if the user has connections that were not tried."""
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
            while replay.again:
                replay.again = False
                self.lines.shut(replay.user_id)
                over = await self._try(replay)
                if not replay.again:
                    replay.written.set()
                    self.lines.open(replay.user_id)
                await replay.quiet()
                if not replay.again and replay.is_claimed:
                    await self._release(replay.user_id)
                if not over and not replay.again:
                    await self._pause(replay)
        finally:
            del self._running[replay.user_id]
            replay.written.set()
            self.lines.open(replay.user_id)

    async def _try(self, replay: ReplayWindow) -> bool:
        """Send what is there; False if it has to be tried again later."""
        try:
            return await self._pass(replay)
        except Unavailable as error:
            self._logger.warning("replay_stopped", error=told(error))
            return False

    async def _pass(self, replay: ReplayWindow) -> bool:
        user_id, after = replay.user_id, 0
        if not await self._store.waiting(user_id, after, 1, self._clock.wall()):
            return True  # the usual case costs no claim
        while not self._is_over(replay):
            holder = await self._store.claim(user_id, self._node, CLAIM_TTL)
            if holder != self._node:
                return await self._leave_to(NodeId(holder), replay)
            replay.is_claimed = True
            places = await self._places(user_id)
            page = await self._store.waiting(user_id, after, WINDOW, self._clock.wall())
            if not page or not places:
                return True
            for position, message in page:
                after = position
                if not await self._offer(replay, message, places):
                    break
        return True

    async def _places(self, user_id: UserId) -> list[_Place]:
        """The user's connections that are let in, as far as this node knows."""
        [recipient] = await self._locate.users([user_id])
        return [
            _Place(node, conn_id)
            for node, conn_ids in recipient.by_node.items()
            for conn_id in conn_ids
        ]

    async def _offer(
        self, replay: ReplayWindow, message: StoredMessage, places: list[_Place]
    ) -> bool:
        """Send a message to who has not got it, when there is room for it in the window.

        False if there is somebody new, who has to get the first ones first, or no time.
        """
        if not replay.misses(message.id, [place.conn_id for place in places]):
            return True
        while not replay.has_place(message.id):
            replay.written.set()
            await replay.news()
            if self._is_over(replay):
                return False
        await self._sender.ready()
        if self._is_over(replay):
            return False
        places = [
            place
            for place in places
            if self._is_there(place, replay.user_id) and replay.may_get(message.id, place.conn_id)
        ]
        if places:
            self._send(replay, message, places)
        return True

    def _is_over(self, replay: ReplayWindow) -> bool:
        return replay.again or self._connections.draining

    def _is_there(self, place: _Place, user_id: UserId) -> bool:
        """Whether the connection still is the user's; another node says so of its own."""
        if place.node != self._node:
            return True
        conn = self._connections.get(place.conn_id)
        return conn is not None and RecipientFilter(user=user_id).means(conn)

    def _send(self, replay: ReplayWindow, message: StoredMessage, places: list[_Place]) -> None:
        try:
            frame = read_message(
                self._codec, message.payload, message.priority, recipient=str(replay.user_id)
            )
            if frame.envelope is None or frame.envelope.id != message.id:
                raise MalformedMessage("it has another id")
        except MalformedMessage as error:
            self._logger.error("stored_message_unreadable", id=message.id, error=told(error))
            self._settle(replay, message.id)
            return
        now, deadline = self._clock.now(), None
        if message.expires_at is not None:
            deadline = now + (message.expires_at - self._clock.wall()).total_seconds()
        plan, whom = Plan(ACK_TIMEOUT, 0, 0.0, deadline), RecipientFilter(user=replay.user_id)
        replay.sent(message.id, [place.conn_id for place in places])
        for place in places:
            done = partial(self._came, replay, message.id, frame)
            conn = self._connections.get(place.conn_id)
            if conn is not None:
                sent = self._pending_acks.begin([conn], frame, plan, whom).future
                sent.add_done_callback(partial(_tell, done))
            else:
                self._tasks.spawn(self._there(place, frame, plan, whom, done))

    async def _there(
        self,
        place: _Place,
        frame: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter,
        done: Callable[[Outcome], None],
    ) -> None:
        done(await self._acks.there(place.node, place.conn_id, frame, plan, whom))

    def _came(
        self, replay: ReplayWindow, message_id: str, frame: EncodedMessage, outcome: Outcome
    ) -> None:
        """What became of a message to one connection."""
        if outcome.delivered or outcome.reason is FailureReason.NACKED:
            self._settle(replay, message_id)
        else:
            crowded = outcome.reason is FailureReason.QUEUE_FULL
            replay.unanswered(message_id, outcome.conn_id, crowded=crowded)
        if outcome.reason not in (None, FailureReason.TIMEOUT):
            # Whose time is over is told of when it is removed. This is not awaited: a
            # handler may send to the user, and wait in line for this replay.
            self._tasks.spawn(
                self._sender.report(
                    frame,
                    Addressee(outcome.conn_id, outcome.user_id),
                    outcome.reason,
                    outcome.error,
                    duration=outcome.seconds,
                )
            )

    def _settle(self, replay: ReplayWindow, message_id: str) -> None:
        """Somebody has answered: the message need not be kept."""
        if replay.settle(message_id):
            self._tasks.spawn(self._remove(replay, message_id))

    async def _remove(self, replay: ReplayWindow, message_id: str) -> None:
        try:
            await self._store.remove(replay.user_id, message_id)
        except Unavailable as error:
            # It will be delivered once more, under its id.
            self._logger.warning("answered_message_kept", id=message_id, error=told(error))
        finally:
            replay.removed()

    async def _pause(self, replay: ReplayWindow) -> None:
        """Wait before the next try; there is one if the user is still here."""
        timer = self._clock.call_later(PAUSE, replay.end_pause)
        try:
            while not (replay.again or replay.rested):
                await replay.news()
        finally:
            timer.cancel()
            replay.rested = False
        if self._connections.of_user(replay.user_id) and not self._connections.draining:
            replay.again = True

    # --- whose it is

    async def _leave_to(self, holder: NodeId, replay: ReplayWindow) -> bool:
        """Have the node that has the claim take in who is here; False if it is silent."""
        replay.written.set()
        self.lines.open(replay.user_id)
        if await self._cluster.is_alive(holder):
            if await self._cluster.request(holder, Replay(replay.user_id)):
                return True
        else:
            await self._store.release(replay.user_id, holder)
        replay.again = True  # nobody has it any more
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
        with suppress(Unavailable):  # it lapses by itself
            await self._store.release(user_id, self._node)

    async def close(self) -> None:
        """End the replays; what was not answered stays stored."""
        claimed = [user_id for user_id, replay in self._running.items() if replay.is_claimed]
        await self._tasks.close()
        # All at once: with a store that is silent, each would have to wait for the others.
        with suppress(Unavailable):  # they lapse by themselves
            await briefly(asyncio.gather(*(self._release(user_id) for user_id in claimed)))


def _tell(done: Callable[[Outcome], None], sent: asyncio.Future[list[Outcome]]) -> None:
    (outcome,) = sent.result()
    done(outcome)


WINDOW = 32
"""Messages that may be unanswered at a time (guarantees.md, "Delivery"): it fits a connection's
queue with room for others, and a client that acks one by one is not waited for each time."""


_NOBODY: frozenset[ConnId] = frozenset()


class ReplayWindow:
    """What a replay remembers. One task waits for what changes in it."""

    def __init__(self, user_id: UserId) -> None:
        self.user_id = user_id
        self.again = True
        """Whether there is somebody who may not have got everything."""
        self.rested = False
        """Whether the pause before the next try is over."""
        self.is_claimed = False
        """Whether this node has, or had, the right to replay."""
        self.written = asyncio.Event()
        """The first window, or all that there was, has been written."""
        self._got: dict[str, set[ConnId]] = {}
        self._flying: dict[str, int] = {}
        self._settled: set[str] = set()
        self._removing = 0
        self._crowded: set[ConnId] = set()
        self._news = asyncio.Event()

    # --- what is asked

    def misses(self, message_id: str, conn_ids: Collection[ConnId]) -> bool:
        """Whether there is somebody who was not sent a message that nobody has answered."""
        got = self._got.get(message_id, _NOBODY)
        return message_id not in self._settled and any(c not in got for c in conn_ids)

    def may_get(self, message_id: str, conn_id: ConnId) -> bool:
        """Whether to send it there: not twice, and not past one that did not fit."""
        if message_id in self._settled or conn_id in self._crowded:
            return False
        return conn_id not in self._got.get(message_id, _NOBODY)

    def has_place(self, message_id: str) -> bool:
        return message_id in self._flying or len(self._flying) < WINDOW

    # --- what happens

    def sent(self, message_id: str, conn_ids: Collection[ConnId]) -> None:
        """It is about to be written to each of them."""
        self._got.setdefault(message_id, set()).update(conn_ids)
        self._flying[message_id] = self._flying.get(message_id, 0) + len(conn_ids)

    def unanswered(self, message_id: str, conn_id: ConnId, *, crowded: bool) -> None:
        """One of them will not answer; ``crowded``: its queue did not take it."""
        if crowded:
            self._crowded.add(conn_id)
        if message_id in self._flying:
            self._flying[message_id] -= 1
            if not self._flying[message_id]:
                del self._flying[message_id]
        self._news.set()

    def settle(self, message_id: str) -> bool:
        """Somebody has answered; True for the first, who has it removed then."""
        self._flying.pop(message_id, None)
        self._got.pop(message_id, None)
        self._news.set()
        if message_id in self._settled:
            return False
        self._settled.add(message_id)
        self._removing += 1
        return True

    def removed(self) -> None:
        self._removing -= 1
        self._news.set()

    def begin_again(self) -> None:
        """There is somebody new."""
        self.again = True
        self.written.clear()
        self._news.set()

    def end_pause(self) -> None:
        self.rested = True
        self._news.set()

    # --- what is waited for

    async def news(self) -> None:
        """Return when something has changed since the last call."""
        await self._news.wait()
        self._news.clear()

    async def quiet(self) -> None:
        """Return when nothing is unanswered any more, or there is somebody new."""
        while (self._flying or self._removing) and not self.again:
            await self.news()


LENGTH = 1000
"""Sends that may wait for one user: as many as messages may be stored for one. Each holds
its message and its caller."""


class _Line:
    """Who waits, and whether they may go on."""

    __slots__ = ("is_open", "waiting")

    def __init__(self) -> None:
        self.is_open = False
        self.waiting: deque[asyncio.Future[None]] = deque()


class ReplayBarrier:
    """A line for each user whose messages have to wait; the others cost nothing."""

    def __init__(self) -> None:
        self._lines: dict[UserId, _Line] = {}

    def __contains__(self, user_id: UserId) -> bool:
        """Whether a message to the user has to wait."""
        return user_id in self._lines

    def shut(self, user_id: UserId) -> None:
        """Have messages to the user wait from now on."""
        self._lines.setdefault(user_id, _Line()).is_open = False

    def open(self, user_id: UserId) -> None:
        """Let those who wait go on, one after the other. May be called again."""
        line = self._lines.get(user_id)
        if line is not None and not line.is_open:
            line.is_open = True
            self._next(user_id, line)

    async def wait(self, user_id: UserId) -> bool:
        """Wait in the user's line; False at once if it is too long."""
        line = self._lines.get(user_id)
        if line is None:
            return True
        if len(line.waiting) >= LENGTH:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # passed over meanwhile
                    line.waiting.remove(turn)
            else:
                self._next(user_id, line)  # it had been its turn
            raise
        self._next(user_id, line)
        return True

    def _next(self, user_id: UserId, line: _Line) -> None:
        if not line.is_open:
            return
        while line.waiting:
            turn = line.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        if self._lines.get(user_id) is line:
            del self._lines[user_id]
