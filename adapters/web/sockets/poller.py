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

EVENTS_PER_BATCH: Final = 64
"""Events in one batch at most: the others of the loop get their turn between. What is
read, handled and written in one go should still be in the processor's caches: with 512 a
request costs a third more."""

IDLE_TIME: Final = 0.05
"""Seconds without anything to read after which nothing more is expected."""

Event = tuple[int, int]
"""A descriptor and what it is ready for."""


class PollTarget(Protocol):
    """A connection, as the poller sees it."""

    def on_readable(self) -> None:
        """There is something to read, or the end."""

    def on_writable(self) -> None:
        """The socket takes bytes again."""

    def on_rescheduled(self) -> None:
        """Go on where the last turn ended."""

    def on_error(self, error: Exception) -> None:
        """One of the others raised."""


class ReadinessSource(Protocol):
    """Where readiness comes from."""

    def open(self, on_ready: Callable[[], None]) -> None:
        """Begin on the running loop; call ``on_ready`` when ``ready`` has something."""

    def close(self) -> None: ...

    def watch(self, fd: int, interest: int) -> None:
        """Watch ``fd`` for ``interest``, from now on or instead of what it was."""

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``, before it is closed."""

    def poll(self, most: int) -> Iterable[Event]: ...


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

    def watch(self, fd: int, interest: int) -> None:
        if fd in self._known:
            self._epoll.modify(fd, interest)
        else:
            self._epoll.register(fd, interest)
            self._known.add(fd)

    def unwatch(self, fd: int) -> None:
        if fd in self._known:
            self._known.discard(fd)
            self._epoll.unregister(fd)

    def poll(self, most: int) -> list[Event]:
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
            self.unwatch(fd)
        self._loop = self._on_ready = None

    def watch(self, fd: int, interest: int) -> None:
        assert self._loop is not None
        before = self._interests.get(fd, 0)
        self._interests[fd] = interest
        if interest & READ and not before & READ:
            self._loop.add_reader(fd, self._mark_ready, fd, READ)
        elif before & READ and not interest & READ:
            self._loop.remove_reader(fd)
        if interest & WRITE and not before & WRITE:
            self._loop.add_writer(fd, self._mark_ready, fd, WRITE)
        elif before & WRITE and not interest & WRITE:
            self._loop.remove_writer(fd)

    def unwatch(self, fd: int) -> None:
        if fd in self._interests:
            self.watch(fd, 0)
            del self._interests[fd]
        self._ready.pop(fd, None)

    def poll(self, most: int) -> list[Event]:
        taken = list(self._ready.items())[:most]
        for fd, _ in taken:
            del self._ready[fd]
        return taken

    def _mark_ready(self, fd: int, what: int) -> None:
        self._ready[fd] = self._ready.get(fd, 0) | what
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._notify)

    def _notify(self) -> None:
        self._scheduled = False
        if self._on_ready is not None:
            self._on_ready()


def best_source() -> ReadinessSource:
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
        source: ReadinessSource,
        *,
        received_count: Callable[[], int],
        budget: int,
        is_paused: Callable[[], bool],
        on_batch_start: Callable[[], None],
        on_batch_end: Callable[[], None],
    ) -> None:
        self._source = source
        self._received_count = received_count
        self._budget = budget
        self._is_paused = is_paused
        self._on_batch_start = on_batch_start
        self._on_batch_end = on_batch_end
        self._peers: dict[int, PollTarget] = {}
        self._unhandled: list[Event] = []
        self._rescheduled: dict[PollTarget, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._batches = 0

    def start(self) -> None:
        """Begin on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._source.open(self._batch)

    async def wait_idle(self) -> None:
        """Return when all that has come was read, and for a moment nothing more came."""
        before = -1
        while self._batches != before or self._rescheduled or self._unhandled:
            before = self._batches
            await asyncio.sleep(IDLE_TIME)

    def stop(self) -> None:
        self._source.close()
        self._loop = None
        self._peers.clear()
        self._unhandled.clear()
        self._rescheduled.clear()

    def watch(self, fd: int, peer: PollTarget, interest: int) -> None:
        """Tell ``peer`` when ``fd`` is ready; ``interest`` 0: only when it breaks."""
        self._source.watch(fd, interest)
        self._peers[fd] = peer

    def unwatch(self, fd: int) -> None:
        """Tell nothing of ``fd`` any more. To be called before it is closed."""
        if self._peers.pop(fd, None) is not None:
            self._source.unwatch(fd)

    def reschedule(self, peer: PollTarget) -> None:
        """Give ``peer`` a turn in the next batch."""
        self._rescheduled[peer] = None
        self._schedule()

    def unschedule(self, peer: PollTarget) -> None:
        """Take back ``reschedule``."""
        self._rescheduled.pop(peer, None)

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_batch)

    def _scheduled_batch(self) -> None:
        self._scheduled = False
        if self._loop is not None:
            self._batch()

    def _batch(self) -> None:
        if self._is_paused():
            # What is ready stays so; only what nobody will report must be kept in mind.
            if self._rescheduled or self._unhandled:
                self._schedule()
            return
        self._batches += 1
        self._on_batch_start()
        try:
            taken = self._received_count()
            self._run_rescheduled(taken + self._budget // 2)
            self._handle_events(taken + self._budget)
        finally:
            if self._rescheduled or self._unhandled:
                self._schedule()
            self._on_batch_end()

    def _run_rescheduled(self, limit: int) -> None:
        """Let those go on who were cut short, as far as their share of the batch goes."""
        for _ in range(len(self._rescheduled)):
            peer = next(iter(self._rescheduled), None)
            if peer is None:
                break
            del self._rescheduled[peer]
            try:
                peer.on_rescheduled()
            except Exception as error:  # noqa: BLE001
                peer.on_error(error)
            if self._received_count() > limit:
                break

    def _handle_events(self, limit: int) -> None:
        events = self._unhandled
        if len(events) < EVENTS_PER_BATCH:
            events = [*events, *self._source.poll(EVENTS_PER_BATCH - len(events))]
        self._unhandled = []
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
            if self._received_count() > limit:
                self._unhandled = events[at:]
                break
