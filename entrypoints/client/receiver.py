"""Received messages on their way to the application.

A message is the answer to a request; or a notice of the server; or it is checked against its
room's position, then against the ids of handled messages (a duplicate is acked again), and
queued for its callback or for the iteration.

Rules of this file:

1. Nothing here waits. A message that does not fit into its queue leaves a gap if its room
   keeps history, and is counted as dropped if not.
2. A message that asks for an ack gets it when it has been handled, and a duplicate gets the
   same ack. If the history's copy was handled instead, which asks for none, the ack goes to
   the message that asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.client import wire
from eyewall.client.callbacks import invoke, run_logged
from eyewall.client.inbox import Inbox
from eyewall.client.link import Link, requested_wait
from eyewall.client.requests import Requests
from eyewall.client.rooms import RoomTracker, Verdict
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import InvalidEnvelope
from eyewall.domain.routing import RouteTable
from eyewall.domain.topic import is_system

A = TypeVar("A")

MAX_REMEMBERED: Final = 1024
"""Ids: both queues of a client, full (256 each), and as many again that the server may
retransmit because it did not get their acks."""


@dataclass(slots=True)
class Handling(Generic[A]):
    """What became of one message."""

    ack_to: A | None
    """The connection that gets the ack; None if the message asked for none."""
    answer: bytes | None = None
    """The ack, whether or not it was sent; None until the message has been handled."""


class HandledMessages(Generic[A]):
    """Messages that were handled or are queued, by id; the oldest are forgotten first."""

    __slots__ = ("_handlings", "_limit", "_owed")

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._handlings: dict[str, Handling[A]] = {}
        self._owed: dict[str, A] = {}
        """The connections that get the acks of messages which came behind a gap."""

    def __len__(self) -> int:
        return len(self._handlings)

    def find(self, message_id: str | None) -> Handling[A] | None:
        """Return what became of a message; None if it is new."""
        return None if message_id is None else self._handlings.get(message_id)

    def defer_ack(self, message_id: str | None, ack_to: A) -> None:
        """Remember that a message which was not taken asks for an ack. It comes again from
        the history, and does not ask then: its ack goes to ``ack_to``."""
        if message_id is not None:
            self._owed[message_id] = ack_to
            if len(self._owed) > self._limit:
                del self._owed[next(iter(self._owed))]

    def begin(self, message_id: str | None, ack_to: A | None) -> Handling[A]:
        """Note a new message; its ack goes to ``ack_to``, or where a deferred one goes."""
        work = Handling(ack_to)
        if message_id is not None:
            if self._owed:
                owed = self._owed.pop(message_id, None)
                work.ack_to = owed if ack_to is None else ack_to
            self._handlings[message_id] = work
            if len(self._handlings) > self._limit:
                del self._handlings[next(iter(self._handlings))]
        return work


Callback = Callable[[Envelope[Any]], Any]

KICKED = "system:kicked"


@dataclass(slots=True)
class Incoming:
    """A message on its way to the application."""

    message: Envelope[Any]
    size: int
    link: Link
    work: Handling[Link] | None = None
    callback: Callback | None = None

    def settle(self, answer: bytes) -> None:
        """Note that it was handled, and send the ack to the last connection that asked."""
        assert self.work is not None
        self.work.answer = answer
        if self.work.ack_to is not None:
            self.work.ack_to.post(answer)


@dataclass(slots=True)
class Counts:
    """Received messages that did not reach the application, since the client began."""

    unreadable: int = 0
    """Frames that are no message of the protocol."""
    dropped: int = 0
    """Messages that did not fit into their queue, and do not come again by themselves."""
    repeats: int = 0
    """Duplicates."""
    gaps: int = 0
    """Messages that came behind a gap, or did not fit into their queue; they come again."""


class Receiver:
    """Takes frames in, and queues messages for the application."""

    def __init__(
        self,
        *,
        rooms: RoomTracker[Incoming],
        requests: Requests,
        logger: Logger,
        queue: int,
        gap_found: Callable[[], None],
        lost: Callable[[str, str | None], None],
    ) -> None:
        self.callbacks: RouteTable[Callback] = RouteTable()
        self.counts = Counts()
        self.callback_queue: Inbox[Incoming] = Inbox(queue)
        """Messages with a callback."""
        self.iteration_queue: Inbox[Incoming] = Inbox(queue)
        """Messages without a callback."""
        self.callback_queue.on_space = self.iteration_queue.on_space = gap_found
        self._rooms = rooms
        self._requests = requests
        self._logger = logger
        self._handled: HandledMessages[Link] = HandledMessages()
        self._gap_found = gap_found
        self._lost = lost

    # --- a frame

    def received(self, link: Link, frame: str) -> None:
        """Take one frame in. Never waits, never raises."""
        try:
            self._take_in(link, wire.decode(frame), len(frame))
        except InvalidEnvelope:
            self.counts.unreadable += 1
        except Exception as error:
            # A server that violates the protocol ends neither the connection nor the client.
            self.counts.unreadable += 1
            self._logger.error("message_failed", exc_info=error)

    def _take_in(self, link: Link, message: Envelope[Any], size: int) -> None:
        if message.event in ("ack", "error"):
            is_draining = link.reconnect_in is not None
            if self._requests.is_answer(message, is_draining=is_draining):
                return
        incoming = Incoming(message, size, link)
        if message.stream is not None and not self._rooms.is_left(message.stream.room):
            self._take_positioned(incoming)
        elif is_system(message.topic) and not self._apply_notice(link, message):
            return
        elif not self._deliver(incoming):
            self.counts.dropped += 1

    def _apply_notice(self, link: Link, message: Envelope[Any]) -> bool:
        """Act on a notice of the server; True if the application gets it, too."""
        said = message.data if isinstance(message.data, dict) else {}
        room = said.get("room")
        if message.topic == "system:draining":
            link.reconnect_in = requested_wait(said.get("reconnect_in"))
        elif message.topic == KICKED and isinstance(room, str):
            self._rooms.left(room)
            return True
        elif message.topic == "system:gap" and isinstance(room, str):
            self._rooms.mark_gap(room, said.get("epoch"), said.get("offset"))
            self._gap_found()
        return self.callbacks.find(message.topic, None) is not None

    def _take_positioned(self, incoming: Incoming) -> None:
        """Take a message of a room with history, or note a gap before it."""
        at = incoming.message.stream
        assert at is not None
        # A message that asks for an ack is no replayed one: those ask for none.
        verdict = self._rooms.classify(at, live=incoming.message.ack)
        if verdict is Verdict.TAKE:
            self.take(incoming)
        elif verdict is Verdict.DUPLICATE:
            self.counts.repeats += 1
            self._ack_duplicate(incoming)
        else:
            self._count_gap(incoming)
            self._rooms.buffer(at, incoming, incoming.size)
            self._gap_found()

    def take(self, incoming: Incoming) -> bool:
        """Deliver the next message of its room; False if it did not fit into its queue."""
        at = incoming.message.stream
        assert at is not None
        queue = self._queue(incoming)
        if not self._deliver(incoming, again=self._rooms.is_replayed(at)):
            self._count_gap(incoming)
            self._rooms.mark_dropped(at, queue)
            self._gap_found()
            return False
        if self._rooms.mark_taken(at):
            self._lost(at.room, None)
        return True

    def _count_gap(self, incoming: Incoming) -> None:
        """Count a message that is not taken now, and comes again."""
        self.counts.gaps += 1
        if self._handled.find(incoming.message.id) is not None:
            self._ack_duplicate(incoming)
        elif incoming.message.ack:
            self._handled.defer_ack(incoming.message.id, incoming.link)

    # --- to the application

    def _queue(self, incoming: Incoming) -> Inbox[Incoming]:
        incoming.callback = self.callbacks.find(incoming.message.topic, None)
        return self.iteration_queue if incoming.callback is None else self.callback_queue

    def _deliver(self, incoming: Incoming, *, again: bool = False) -> bool:
        """Queue a message, unless it is a duplicate; False if it did not fit. ``again``: queue
        it even if its id was handled before."""
        message = incoming.message
        if not again and self._handled.find(message.id) is not None:
            self.counts.repeats += 1
            self._ack_duplicate(incoming)
            return True
        if not self._queue(incoming).put(incoming, incoming.size):
            return False
        incoming.work = self._handled.begin(message.id, incoming.link if message.ack else None)
        return True

    def _ack_duplicate(self, incoming: Incoming) -> None:
        """Ack a duplicate: now, or when the message has been handled."""
        work = self._handled.find(incoming.message.id)
        if not incoming.message.ack:
            return
        if work is None:  # its id is forgotten, but its position shows that it was handled
            incoming.link.post(wire.accepted(incoming.message))
        elif work.answer is None:
            work.ack_to = incoming.link
        else:
            incoming.link.post(work.answer)

    async def run(self) -> None:
        """Call the callbacks, one after another, until the queue is closed."""
        while (incoming := await self.callback_queue.get()) is not None:
            assert incoming.callback is not None
            work = invoke(incoming.callback, incoming.message)
            result, error = await run_logged(self._logger, work, incoming.message.topic)
            incoming.settle(self._answer(incoming.message, result, error))

    def _answer(self, message: Envelope[Any], result: object, error: BaseException | None) -> bytes:
        if error is not None:
            return wire.refused(message, str(error) or type(error).__name__)
        try:
            return wire.accepted(message, result)
        except ValueError as unsendable:
            self._logger.error("result_not_sent", topic=message.topic, error=told(unsendable))
            return wire.refused(message, "the callback's result can't be sent")
