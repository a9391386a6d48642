"""Clients that come back: cut at random, they resume, and take each message once, in order."""

from __future__ import annotations

import select
import socket
from collections import Counter
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from tests.faults.clients import Peer, request
from tests.faults.jitter_rooms import Room, Stay
from tests.faults.support import UNIT

if TYPE_CHECKING:
    from tests.faults.storm import Storm

AWAY = 0.3 * UNIT
"""Seconds that a client is away at most before it dials again."""
AGAIN = 0.1 * UNIT
"""Seconds after which a request is sent again that was refused for now."""
STALL = 1.5 * UNIT
"""Seconds for which a client that stalls does not read."""
BUFFER = 4096
"""Bytes of the receive buffer of who stalls: what waits for it waits at the server."""
FOR_NOW = {"unavailable", "overloaded", "rate_limited"}
MAX_PENDING = 32
"""Requests of a publisher without an answer: fewer than a session remembers."""


class Line(Peer):
    """One connection; the answer to its handshake is the first that comes."""

    open = False

    @classmethod
    def begin(cls, port: int, *, buffer: int | None) -> Self:
        """Begin to connect, without waiting."""
        sock = socket.socket()
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        return cls(sock)

    def _parse(self, data: bytes) -> bytes:
        if not self.open:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                return data
            assert head.startswith(b"HTTP/1.1 101"), head
            self.open = True
            data = rest
        return super()._parse(data)


class Member:
    """A client that is cut off and comes back, until the storm is over."""

    def __init__(self, storm: Storm, name: str, rooms: list[str], *, stalls: bool) -> None:
        self.storm = storm
        self.name = name
        self.rooms = {room: Room(room) for room in rooms}
        self.stalls = stalls
        self.session = ""
        self.offered = ""
        self.line: Line | None = None
        self.abandoned: list[Line] = []
        self.joined = 0
        self.live = False
        self.stalled = False
        self.fencing = False
        self.connections = 0
        self.conn_id = ""
        self.pending: dict[str, tuple[str, Any]] = {}
        self.sent: Counter[str] = Counter()
        """How many messages it has published, by room."""
        self._resumes: dict[str, list[Room]] = {}
        self._ids = count(1)
        self.dial()

    # --- the connection

    def dial(self) -> None:
        self.connections += 1
        port = self.storm.random.choice(self.storm.ports)
        self.line = Line.begin(port, buffer=BUFFER if self.stalls else None)
        self.storm.watch(self, select.EPOLLOUT)
        if self.storm.cutting:
            self.plan_cut()

    def plan_cut(self) -> None:
        """Be cut off at some time, be it in the handshake or in a resume."""
        line = self.line
        lives = min(self.storm.random.expovariate(1 / self.storm.lives), 3 * self.storm.lives)
        self.storm.later(lives, lambda: self.line is line and self.storm.cutting and self.due())

    def due(self) -> None:
        """The time to be cut has come."""
        if not self.storm.fences:
            self.cut()
        elif self.live and not self.stalled:
            self.fence()
        else:
            self.plan_cut()

    def fence(self) -> None:
        """Ask for an answer: what was acked to its publisher by now is queued before that."""
        for room in self.rooms.values():
            room.stays[-1].fenced = self.storm.acked(room.name)
        self.fencing = True
        self.ask("work:echo", None, "fence")

    def cut(self) -> None:
        """Break the connection in one of three ways, and dial again soon."""
        assert self.line is not None
        self.storm.forget(self)
        how = self.storm.random.choice(("rst", "fin", "abandoned"))
        if how == "rst":
            self.line.reset()
        elif how == "fin":
            with suppress(OSError):
                self.line.shut()
            self.line.close()
        else:
            self.abandoned.append(self.line)
        self.storm.cuts[how] += 1
        self.down()

    def down(self) -> None:
        self.line = None
        self.live = self.stalled = self.fencing = False
        self._resumes.clear()
        self.storm.later(self.storm.random.uniform(0, AWAY), self.dial)

    def stall(self) -> None:
        """Do not read for a while."""
        if self.live and not self.stalled and self.storm.cutting:
            self.stalled = True
            line = self.line
            self.storm.forget(self)
            self.storm.later(STALL, lambda: self.line is line and self.wake())

    def wake(self) -> None:
        self.stalled = False
        self.storm.watch(self, select.EPOLLIN)

    def ready(self, events: int) -> None:
        """The socket can be read, or the connection has been made."""
        assert self.line is not None
        if events & select.EPOLLOUT:
            self.line.write(request({"user": self.name}, session=True))
            self.storm.change(self, select.EPOLLIN)
            return
        line = self.line
        line.read()
        messages, line.messages = line.messages, []
        for message in messages:
            self.took(message)
            if self.line is not line:
                return  # it was cut at the fence
        if line.end is not None or line.closed is not None:
            self.storm.ended[str(line.closed or line.end)] += 1
            self.storm.forget(self)
            line.close()
            self.down()

    # --- what is asked

    def ask(self, topic: str, data: Any, ref: str | None = None) -> str:
        assert self.line is not None
        ref = ref or f"{self.name}-{next(self._ids)}"
        self.line.ask(ref, topic, data)
        return ref

    def resume(self, rooms: list[Room], **session: str) -> None:
        for room in rooms:
            room.resuming = True
            room.gap = False
        wanted = {room.name: room.position for room in rooms}
        self._resumes[self.ask("system:resume", {**session, "rooms": wanted})] = rooms

    def come_back(self) -> None:
        """Take up the session in all rooms."""
        for room in self.rooms.values():
            room.kept.clear()
            room.stays.append(Stay(self.conn_id, self.storm.acked(room.name)))
        self.resume(list(self.rooms.values()), session=self.session)

    def publish(self, room: str, pad: int) -> None:
        """Publish the next message of this client, now or when it is back."""
        if len(self.pending) >= MAX_PENDING:
            return
        data = {"by": self.name, "n": self.sent[room], "pad": "x" * pad}
        self.sent[room] += 1
        ref = f"{self.name}-{next(self._ids)}"
        self.pending[ref] = room, data
        self.storm.waiting[room].add(data["n"])
        if self.live:
            self.ask("system:publish", {"room": room, "data": data}, ref)

    def ask_again(self, ref: str) -> None:
        if self.live and ref in self.pending:
            room, data = self.pending[ref]
            self.ask("system:publish", {"room": room, "data": data}, ref)

    # --- what comes

    def took(self, message: dict[str, Any]) -> None:
        topic, event = message["topic"], message.get("event")
        if topic == "system:welcome":
            self.welcomed(message["data"])
        elif event == "ack":
            self.answered(message["ref"], message["data"])
        elif topic == "system:gap":
            self.storm.gaps += 1
            room = self.rooms[message["data"]["room"]]
            if room.resuming:
                room.gap = True
            else:
                self.resume([room])
        else:
            assert topic.startswith("room:"), message
            self.brought(self.rooms[topic.removeprefix("room:")], message)

    def brought(self, room: Room, message: dict[str, Any]) -> None:
        """A room's message has come."""
        self.storm.deliveries += 1
        if "stream" not in message:
            room.stays[-1].got.append(message["data"]["n"])
            return
        stream = message["stream"]
        if room.epoch is None:  # it is quicker than the answer to the join
            room.epoch, room.last = stream["epoch"], stream["offset"] - 1
        assert stream["epoch"] == room.epoch, message
        if not room.take(stream["offset"], message["data"]) and not room.resuming:
            self.resume([room])

    def welcomed(self, data: dict[str, Any]) -> None:
        self.offered = data["session"]
        self.conn_id = data["conn_id"]
        if self.session:
            self.come_back()
            return
        self.session = self.offered
        for room in self.rooms.values():
            room.stays.append(Stay(self.conn_id, 0))
            self.ask("system:join", {"room": room.name}, f"join {room.name}")

    def answered(self, ref: str, data: dict[str, Any]) -> None:
        if ref == "fence":
            self.fencing = False
            if self.storm.cutting:
                self.cut()
        elif ref.startswith("join "):
            assert data["status"] == "ok", data
            room = self.rooms[data["room"]]
            if room.epoch is None:
                room.epoch, room.last = data.get("epoch"), data.get("offset", 0)
            room.stays[-1].since = 0
            self.joined += 1
            self.live = self.joined == len(self.rooms)
        elif ref in self.pending:
            self.published(ref, data)
        elif ref in self._resumes:
            self.resumed(self._resumes.pop(ref), data)

    def published(self, ref: str, data: dict[str, Any]) -> None:
        if data["status"] != "ok":
            assert data["code"] in FOR_NOW, data
            self.storm.refused[data["code"]] += 1
            self.storm.later(AGAIN, lambda: self.ask_again(ref))
            return
        room, sent = self.pending.pop(ref)
        self.storm.waiting[room].discard(sent["n"])
        self.storm.published[room].append((data.get("offset"), sent))

    def resumed(self, rooms: list[Room], data: dict[str, Any]) -> None:
        line = self.line
        if data["status"] != "ok":
            assert data["code"] in FOR_NOW, data
            self.storm.refused[f"resume {data['code']}"] += 1
            session = {} if self.live else {"session": self.session}
            again = lambda: self.line is line and self.resume(rooms, **session)  # noqa: E731
            self.storm.later(AGAIN, again)
            return
        if not self.live:
            self.back()
        for room in rooms:
            answer = data["rooms"][room.name]
            assert "code" not in answer, answer
            room.resuming = False
            if room.epoch is None and "epoch" in answer:
                # Cut off before the join was answered: nothing has been said before it.
                room.epoch, room.last = answer["epoch"], 0
                self.resume([room])
            elif room.epoch is None:
                assert answer == {"recovered": False}
                room.stays[-1].since = self.storm.sent(room.name)
            elif not answer["recovered"]:
                self.storm.lost.append(f"{self.name} in {room.name}: {answer} at {room.last}")
            else:
                room.recovered(answer["offset"])
                if room.kept or room.gap:
                    self.resume([room])

    def back(self) -> None:
        """The session goes on with this connection."""
        self.session = self.offered
        self.live = True
        for line in self.abandoned:
            line.close()
        self.abandoned.clear()
        for ref in self.pending:
            self.ask_again(ref)
