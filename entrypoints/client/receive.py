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
from typing import Any

from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.client import wire
from eyewall.client.callbacks import attempt, called
from eyewall.client.endings import asked_wait
from eyewall.client.handled import Handled, Work
from eyewall.client.inbox import Inbox
from eyewall.client.link import Link
from eyewall.client.requests import Requests
from eyewall.client.rooms import Rooms, Verdict
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import InvalidEnvelope
from eyewall.domain.routing import RouteTable
from eyewall.domain.topic import is_system

Callback = Callable[[Envelope[Any]], Any]

KICKED = "system:kicked"


@dataclass(slots=True)
class Arrival:
    """A message on its way to the application."""

    message: Envelope[Any]
    size: int
    link: Link
    work: Work[Link] | None = None
    callback: Callback | None = None

    def settle(self, answer: bytes) -> None:
        """It was handled: send the ack to who asked for it last."""
        assert self.work is not None
        self.work.answer = answer
        if self.work.asker is not None:
            self.work.asker.post(answer)


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
        rooms: Rooms[Arrival],
        requests: Requests,
        logger: Logger,
        queue: int,
        behind: Callable[[], None],
        lost: Callable[[str, str | None], None],
    ) -> None:
        self.callbacks: RouteTable[Callback] = RouteTable()
        self.counts = Counts()
        self.called: Inbox[Arrival] = Inbox(queue)
        """What a callback takes."""
        self.iterated: Inbox[Arrival] = Inbox(queue)
        """What no callback takes."""
        self.called.when_roomy = self.iterated.when_roomy = behind
        self._rooms = rooms
        self._requests = requests
        self._logger = logger
        self._handled: Handled[Link] = Handled()
        self._behind = behind
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
        arrival = Arrival(message, size, link)
        if message.stream is not None and not self._rooms.is_out(message.stream.room):
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
            link.reconnect_in = asked_wait(said.get("reconnect_in"))
        elif message.topic == KICKED and isinstance(room, str):
            self._rooms.left(room)
            return True
        elif message.topic == "system:gap" and isinstance(room, str):
            self._rooms.gap(room, said.get("epoch"), said.get("offset"))
            self._behind()
        return self.callbacks.find(message.topic, None) is not None

    def _placed(self, arrival: Arrival) -> None:
        """Take a message of a room with history when it is its turn."""
        at = arrival.message.stream
        assert at is not None
        # What asks for an ack is on its way for the first time: what is kept asks for none.
        verdict = self._rooms.look(at, live=arrival.message.ack)
        if verdict is Verdict.TAKE:
            self.take(arrival)
        elif verdict is Verdict.REPEAT:
            self.counts.repeats += 1
            self._answer_again(arrival)
        else:
            self._is_gap(arrival)
            self._rooms.early(at, arrival, arrival.size)
            self._behind()

    def take(self, arrival: Arrival) -> bool:
        """Deliver the next message of its room; False if there was no place for it."""
        at = arrival.message.stream
        assert at is not None
        queue = self._queue(arrival)
        if not self._deliver(arrival, again=self._rooms.is_wanted_again(at)):
            self._is_gap(arrival)
            self._rooms.missed(at, queue)
            self._behind()
            return False
        if self._rooms.took(at):
            self._lost(at.room, None)
        return True

    def _is_gap(self, arrival: Arrival) -> None:
        """It is not handled now, and comes again."""
        self.counts.gaps += 1
        if self._handled.find(arrival.message.id) is not None:
            self._answer_again(arrival)
        elif arrival.message.ack:
            self._handled.owe(arrival.message.id, arrival.link)

    # --- to the application

    def _queue(self, arrival: Arrival) -> Inbox[Arrival]:
        arrival.callback = self.callbacks.find(arrival.message.topic, None)
        return self.iterated if arrival.callback is None else self.called

    def _deliver(self, arrival: Arrival, *, again: bool = False) -> bool:
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

    def _answer_again(self, arrival: Arrival) -> None:
        """Answer a repeat: now, or when the message has been handled."""
        work = self._handled.find(arrival.message.id)
        if not arrival.message.ack:
            return
        if work is None:  # too long ago to be remembered, but its place says that it came
            arrival.link.post(wire.accepted(arrival.message))
        elif work.answer is None:
            work.asker = arrival.link
        else:
            arrival.link.post(work.answer)

    async def run(self) -> None:
        """Call the callbacks, one after another, until the queue is closed."""
        while (arrival := await self.called.get()) is not None:
            assert arrival.callback is not None
            work = called(arrival.callback, arrival.message)
            result, error = await attempt(self._logger, work, arrival.message.topic)
            arrival.settle(self._answer(arrival.message, result, error))

    def _answer(self, message: Envelope[Any], result: object, error: BaseException | None) -> bytes:
        if error is not None:
            return wire.refused(message, str(error) or type(error).__name__)
        try:
            return wire.accepted(message, result)
        except ValueError as unsendable:
            self._logger.error("result_not_sent", topic=message.topic, error=told(unsendable))
            return wire.refused(message, "the callback's result can't be sent")
