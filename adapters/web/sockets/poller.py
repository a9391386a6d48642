"""In: which sockets are ready, and whose turn it is to be read.

Rules of this file:

1. One connection's exception never stops the batch.
2. A descriptor's number may be in use by another connection by the time its event is
   looked at. So a peer only takes an event as a hint: it tries, and finds nothing.
3. A batch ends early when it has brought enough messages, whatever becomes of them.
   What it did not come to is first in the next, so nobody is overtaken for ever.
4. Those who were cut short have half of a batch at most. The rest is for events: who
   has little to say never waits until those are through who have much.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Final, Protocol

READ: Final = 0x01
WRITE: Final = 0x04
"""As in ``select.EPOLLIN`` and ``select.EPOLLOUT``. Other bits report an error or a
hang-up, which reading will find out about."""

BATCH: Final = 64
"""Events in one batch at most: the others of the loop get their turn between. What is
read, handled and written in one go should still be in the processor's caches: with 512 a
request costs a third more."""

QUIET: Final = 0.05
"""Seconds without anything to read after which nothing more is expected."""

Event = tuple[int, int]
"""A descriptor and what it is ready for."""


class Peer(Protocol):
    """A connection, as the poller sees it."""

    def on_readable(self) -> None:
        """There is something to read, or the end."""

    def on_writable(self) -> None:
        """The socket takes bytes again."""

    def on_turn(self) -> None:
        """Go on where the last turn ended."""

    def on_error(self, error: Exception) -> None:
        """One of the others raised."""


class Source(Protocol):
    """Where readiness comes from."""

    def open(self, on_ready: Callable[[], None]) -> None:
        """Begin on the running loop; call ``on_ready`` when ``ready`` has something."""

    def close(self) -> None: ...

    def set(self, fd: int, interest: int) -> None:
        """Watch ``fd`` for ``interest``, from now on or instead of what it was."""

    def drop(self, fd: int) -> None:
        """Forget ``fd``, before it is closed."""

    def ready(self, most: int) -> Iterable[Event]: ...


class EpollSource:
    """One private epoll, whose own descriptor is a single reader of the loop.

    It is made when it is opened: one made before a fork would be shared with the child,
    and each process would get the other's events.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll
        self._loop: asyncio.AbstractEventLoop | None = None
        self._known: set[int] = set()

    def open(self, on_ready: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), on_ready)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._loop = None
            self._epoll.close()
        self._known.clear()

    def set(self, fd: int, interest: int) -> None:
        if fd in self._known:
            self._epoll.modify(fd, interest)
        else:
            self._epoll.register(fd, interest)
            self._known.add(fd)

    def drop(self, fd: int) -> None:
        if fd in self._known:
            self._known.discard(fd)
            self._epoll.unregister(fd)

    def ready(self, most: int) -> list[Event]:
        return self._epoll.poll(0, most)


class LoopSource:
    """The event loop's own readers and writers, where there is no epoll.

    It tells no hang-up of a descriptor that is watched for nothing, and may tell an
    event once more than it is true.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_ready: Callable[[], None] | None = None
        self._interests: dict[int, int] = {}
        self._ready: dict[int, int] = {}
        self._scheduled = False

    def open(self, on_ready: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._scheduled = False

    def close(self) -> None:
        for fd in list(self._interests):
            self.drop(fd)
        self._loop = self._on_ready = None

    def set(self, fd: int, interest: int) -> None:
        assert self._loop is not None
        before = self._interests.get(fd, 0)
        self._interests[fd] = interest
        if interest & READ and not before & READ:
            self._loop.add_reader(fd, self._tell, fd, READ)
        elif before & READ and not interest & READ:
            self._loop.remove_reader(fd)
        if interest & WRITE and not before & WRITE:
            self._loop.add_writer(fd, self._tell, fd, WRITE)
        elif before & WRITE and not interest & WRITE:
            self._loop.remove_writer(fd)

    def drop(self, fd: int) -> None:
        if fd in self._interests:
            self.set(fd, 0)
            del self._interests[fd]
        self._ready.pop(fd, None)

    def ready(self, most: int) -> list[Event]:
        taken = list(self._ready.items())[:most]
        for fd, _ in taken:
            del self._ready[fd]
        return taken

    def _tell(self, fd: int, what: int) -> None:
        self._ready[fd] = self._ready.get(fd, 0) | what
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._told)

    def _told(self) -> None:
        self._scheduled = False
        if self._on_ready is not None:
            self._on_ready()


def best_source() -> Source:
    """Return what this machine has to offer."""
    return EpollSource() if hasattr(select, "epoll") else LoopSource()


class Poller:
    """Gives the connections their turns, in batches.

    ``taken`` says how many messages have come so far; a batch ends when it has added
    more than ``budget`` to them. While ``held`` says so, nothing is read.
    ``before`` and ``after`` stand around every batch.
    """

    def __init__(
        self,
        source: Source,
        *,
        taken: Callable[[], int],
        budget: int,
        held: Callable[[], bool],
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        self._source = source
        self._taken = taken
        self._budget = budget
        self._held = held
        self._before = before
        self._after = after
        self._peers: dict[int, Peer] = {}
        self._left: list[Event] = []
        self._again: dict[Peer, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._batches = 0

    def start(self) -> None:
        """Begin on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._source.open(self._batch)

    async def quiet(self) -> None:
        """Return when all that has come was read, and for a moment nothing more came."""
        before = -1
        while self._batches != before or self._again or self._left:
            before = self._batches
            await asyncio.sleep(QUIET)

    def stop(self) -> None:
        self._source.close()
        self._loop = None
        self._peers.clear()
        self._left.clear()
        self._again.clear()

    def watch(self, fd: int, peer: Peer, interest: int) -> None:
        """Tell ``peer`` when ``fd`` is ready; ``interest`` 0: only when it breaks."""
        self._source.set(fd, interest)
        self._peers[fd] = peer

    def forget(self, fd: int) -> None:
        """Tell nothing of ``fd`` any more. To be called before it is closed."""
        if self._peers.pop(fd, None) is not None:
            self._source.drop(fd)

    def again(self, peer: Peer) -> None:
        """Give ``peer`` a turn in the next batch."""
        self._again[peer] = None
        self._schedule()

    def withdraw(self, peer: Peer) -> None:
        """Take back ``again``."""
        self._again.pop(peer, None)

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_batch)

    def _scheduled_batch(self) -> None:
        self._scheduled = False
        if self._loop is not None:
            self._batch()

    def _batch(self) -> None:
        if self._held():
            # What is ready stays so; only what nobody will report must be kept in mind.
            if self._again or self._left:
                self._schedule()
            return
        self._batches += 1
        self._before()
        try:
            taken = self._taken()
            self._take_turns(taken + self._budget // 2)
            self._take_events(taken + self._budget)
        finally:
            if self._again or self._left:
                self._schedule()
            self._after()

    def _take_turns(self, limit: int) -> None:
        """Let those go on who were cut short, as far as their share of the batch goes."""
        for _ in range(len(self._again)):
            peer = next(iter(self._again), None)
            if peer is None:
                break
            del self._again[peer]
            try:
                peer.on_turn()
            except Exception as error:  # noqa: BLE001
                peer.on_error(error)
            if self._taken() > limit:
                break

    def _take_events(self, limit: int) -> None:
        events = self._left
        if len(events) < BATCH:
            events = [*events, *self._source.ready(BATCH - len(events))]
        self._left = []
        find = self._peers.get
        for at, (fd, what) in enumerate(events, 1):
            peer = find(fd)
            if peer is None:
                continue
            try:
                if what & WRITE:
                    peer.on_writable()
                if what & ~WRITE:
                    peer.on_readable()
            except Exception as error:  # noqa: BLE001
                peer.on_error(error)
            if self._taken() > limit:
                self._left = events[at:]
                break
