"""All clients of ``jitter``, and what happens to them."""

from __future__ import annotations

import heapq
import select
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, Self

from tests.faults.jitter import Member


class Storm:
    """All clients, and what happens to them; one thread, driven by ``until``."""

    def __init__(self, ports: list[int], seed: int, *, lives: float, fences: bool) -> None:
        self.ports = ports
        self.random = Random(seed)
        self.lives = lives
        """Seconds for which a connection lives on average."""
        self.fences = fences
        """Whether who is to be cut off first makes sure what has come until then."""
        self.cutting = False
        self.members: list[Member] = []
        self.cuts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """Connections that ended without being cut here, by how."""
        self.refused: Counter[str] = Counter()
        self.gaps = 0
        self.deliveries = 0
        self.lost: list[str] = []
        """Rooms whose history did not recover."""
        self.published: dict[str, list[tuple[int, Any]]] = {}
        """What was acked, by room: the offset and the data."""
        self.waiting: dict[str, set[int]] = {}
        self._by_fd: dict[int, Member] = {}
        self._epoll = select.epoll()
        self._timers: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = count()

    def add(self, name: str, rooms: list[str], *, stalls: bool = False) -> Member:
        for room in rooms:
            self.published.setdefault(room, [])
            self.waiting.setdefault(room, set())
        member = Member(self, name, rooms, stalls=stalls)
        self.members.append(member)
        return member

    def sent(self, room: str) -> int:
        """How many messages were published in a room with one publisher."""
        return len(self.published[room]) + len(self.waiting[room])

    def acked(self, room: str) -> int:
        """The first number that was not acked in a room with one publisher."""
        return min(self.waiting[room], default=self.sent(room))

    # --- the loop

    def later(self, seconds: float, what: Callable[[], Any]) -> None:
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, next(self._numbers), what))

    def every(self, seconds: float, what: Callable[[], Any]) -> None:
        """Do something again and again while connections are being cut."""

        def again() -> None:
            if self.cutting:
                what()
                self.later(seconds, again)

        self.later(self.random.uniform(0, seconds), again)

    def watch(self, member: Member, events: int) -> None:
        assert member.line is not None
        self._by_fd[member.line.sock.fileno()] = member
        self._epoll.register(member.line.sock.fileno(), events)

    def change(self, member: Member, events: int) -> None:
        assert member.line is not None
        self._epoll.modify(member.line.sock.fileno(), events)

    def forget(self, member: Member) -> None:
        assert member.line is not None
        if self._by_fd.pop(member.line.sock.fileno(), None) is not None:
            self._epoll.unregister(member.line.sock.fileno())

    def until(self, condition: Callable[[], Any], within: float, what: Callable[[], str]) -> None:
        """Run until ``condition`` is true; fail when it takes too long."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"within {within} s: {what()}"
            self._turn()

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._turn()

    def _turn(self) -> None:
        for fd, events in self._epoll.poll(0.01, 1024):
            member = self._by_fd.get(fd)
            if member is not None:
                member.ready(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        for member in self.members:
            if member.line is not None and member.line._unsent:
                member.line.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        for member in self.members:
            for line in (member.line, *member.abandoned):
                if line is not None:
                    line.close()
