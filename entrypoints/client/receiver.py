"""In: what becomes of one received message.

an answer? settle it: done -> the server's own notice? act on it -> its place in its room
-> a repeat? answer it: done -> into the queue of the callbacks, or of the iteration.

Rules of this file:

1. Nothing here waits: what has no place in its queue is a gap, to be filled later, if its
   room keeps history, and is counted as dropped if not.
2. A message that asks for an ack gets one, when it has been handled; its repeats get the
   same again. That holds also where it was handled as its room keeps it, without asking.
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
"""Ids remembered: both queues of a client, full (256 each), and as many again that the
server may send another time, because it did not see their acks."""


@dataclass(slots=True)
class Handling(Generic[A]):
    """One message: in work until it has an answer."""

    ack_to: A | None
    """Where its ack is to go; None if nobody asked for one."""
    answer: bytes | None = None
    """The ack, as it was or would have been sent."""


class HandledMessages(Generic[A]):
    """Messages by their ids; the oldest are forgotten first."""

    __slots__ = ("_handlings", "_limit", "_owed")

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._handlings: dict[str, Handling[A]] = {}
        self._owed: dict[str, A] = {}
        """Where the acks are to go of messages that could not be handled when they came."""

    def __len__(self) -> int:
        return len(self._handlings)

    def find(self, message_id: str | None) -> Handling[A] | None:
        """Return what became of the message; None for one that is new."""
        return None if message_id is None else self._handlings.get(message_id)

    def defer_ack(self, message_id: str | None, asker: A) -> None:
        """A message that asks for an ack was not its room's next, or had no place. It comes
        again as the room keeps it, and that does not ask: its ack goes to ``asker``."""
        if message_id is not None:
            self._owed[message_id] = asker
            if len(self._owed) > self._limit:
                del self._owed[next(iter(self._owed))]

    def begin(self, message_id: str | None, asker: A | None) -> Handling[A]:
        """Take in a new message."""
        work = Handling(asker)
        if message_id is not None:
            if self._owed:
                owed = self._owed.pop(message_id, None)
                work.ack_to = owed if asker is None else asker
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
        """It was handled: send the ack to who asked for it last."""
        assert self.work is not None
        self.work.answer = answer
        if self.work.ack_to is not None:
            self.work.ack_to.post(answer)


@dataclass(slots=True)
class Counts:
    """What a client has not handed to the application, since it began."""

    unreadable: int = 0
    """Frames that are no message of the protocol."""
    dropped: int = 0
    """Messages that had no place in their queue and do not come again by themselves."""
    repeats: int = 0
    """Messages that had come before."""
    gaps: int = 0
    """Messages that came ahead of their turn, or had no place; they come again."""


class Receiver:
    """Takes frames in; the queues are the application's to empty."""

    def __init__(
        self,
        *,
        rooms: RoomTracker[Incoming],
        requests: Requests,
        logger: Logger,
        queue: int,
        behind: Callable[[], None],
        lost: Callable[[str, str | None], None],
    ) -> None:
        self.callbacks: RouteTable[Callback] = RouteTable()
        self.counts = Counts()
        self.callback_queue: Inbox[Incoming] = Inbox(queue)
        """What a callback takes."""
        self.iteration_queue: Inbox[Incoming] = Inbox(queue)
        """What no callback takes."""
        self.callback_queue.on_space = self.iteration_queue.on_space = behind
        self._rooms = rooms
        self._requests = requests
        self._logger = logger
        self._handled: HandledMessages[Link] = HandledMessages()
        self._gap_found = behind
        self._lost = lost

    # --- a frame

    def received(self, link: Link, frame: str) -> None:
        """Take one frame in. Never waits, never raises."""
        try:
            self._take_in(link, wire.decode(frame), len(frame))
        except InvalidEnvelope:
            self.counts.unreadable += 1
        except Exception as error:
            # Of a server that keeps to nothing: it ends neither the connection nor the client.
            self.counts.unreadable += 1
            self._logger.error("message_failed", exc_info=error)

    def _take_in(self, link: Link, message: Envelope[Any], size: int) -> None:
        if message.event in ("ack", "error") and self._requests.is_answer(message):
            return
        arrival = Incoming(message, size, link)
        if message.stream is not None and not self._rooms.is_left(message.stream.room):
            self._placed(arrival)
        elif is_system(message.topic) and not self._noticed(link, message):
            return
        elif not self._deliver(arrival):
            self.counts.dropped += 1

    def _noticed(self, link: Link, message: Envelope[Any]) -> bool:
        """Act on a notice of the server; True if it is for the application too."""
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

    def _placed(self, arrival: Incoming) -> None:
        """Take a message of a room with history when it is its turn."""
        at = arrival.message.stream
        assert at is not None
        # What asks for an ack is on its way for the first time: what is kept asks for none.
        verdict = self._rooms.classify(at, live=arrival.message.ack)
        if verdict is Verdict.TAKE:
            self.take(arrival)
        elif verdict is Verdict.DUPLICATE:
            self.counts.repeats += 1
            self._answer_again(arrival)
        else:
            self._is_gap(arrival)
            self._rooms.buffer(at, arrival, arrival.size)
            self._gap_found()

    def take(self, arrival: Incoming) -> bool:
        """Deliver the next message of its room; False if there was no place for it."""
        at = arrival.message.stream
        assert at is not None
        queue = self._queue(arrival)
        if not self._deliver(arrival, again=self._rooms.is_replayed(at)):
            self._is_gap(arrival)
            self._rooms.mark_dropped(at, queue)
            self._gap_found()
            return False
        if self._rooms.mark_taken(at):
            self._lost(at.room, None)
        return True

    def _is_gap(self, arrival: Incoming) -> None:
        """It is not handled now, and comes again."""
        self.counts.gaps += 1
        if self._handled.find(arrival.message.id) is not None:
            self._answer_again(arrival)
        elif arrival.message.ack:
            self._handled.defer_ack(arrival.message.id, arrival.link)

    # --- to the application

    def _queue(self, arrival: Incoming) -> Inbox[Incoming]:
        arrival.callback = self.callbacks.find(arrival.message.topic, None)
        return self.iteration_queue if arrival.callback is None else self.callback_queue

    def _deliver(self, arrival: Incoming, *, again: bool = False) -> bool:
        """Queue a message, unless it is a repeat; False if there was no place. ``again``: it
        is to be handled whether or not it has been."""
        message = arrival.message
        if not again and self._handled.find(message.id) is not None:
            self.counts.repeats += 1
            self._answer_again(arrival)
            return True
        if not self._queue(arrival).put(arrival, arrival.size):
            return False
        arrival.work = self._handled.begin(message.id, arrival.link if message.ack else None)
        return True

    def _answer_again(self, arrival: Incoming) -> None:
        """Answer a repeat: now, or when the message has been handled."""
        work = self._handled.find(arrival.message.id)
        if not arrival.message.ack:
            return
        if work is None:  # too long ago to be remembered, but its place says that it came
            arrival.link.post(wire.accepted(arrival.message))
        elif work.answer is None:
            work.ack_to = arrival.link
        else:
            arrival.link.post(work.answer)

    async def run(self) -> None:
        """Call the callbacks, one after another, until the queue is closed."""
        while (arrival := await self.callback_queue.get()) is not None:
            assert arrival.callback is not None
            work = invoke(arrival.callback, arrival.message)
            result, error = await run_logged(self._logger, work, arrival.message.topic)
            arrival.settle(self._answer(arrival.message, result, error))

    def _answer(self, message: Envelope[Any], result: object, error: BaseException | None) -> bytes:
        if error is not None:
            return wire.refused(message, str(error) or type(error).__name__)
        try:
            return wire.accepted(message, result)
        except ValueError as unsendable:
            self._logger.error("result_not_sent", topic=message.topic, error=told(unsendable))
            return wire.refused(message, "the callback's result can't be sent")
