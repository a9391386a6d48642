"""Polling: which sockets are ready, and which connection is read next.

Rules of this file:

1. The exception of one connection never stops the batch.
2. A file descriptor may belong to another connection by the time that its event is handled.
   So an event is a hint only: the connection reads, and may find nothing.
3. A batch ends early when it has read enough messages. Its other events come first in the next
   batch, so no connection starves.
4. Rescheduled connections, which had more input than one turn reads, get half of a batch at
   most. The rest is for events, so a busy connection does not delay the others.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Final, Protocol

READ: Final = 0x01
WRITE: Final = 0x04
"""As ``select.EPOLLIN`` and ``select.EPOLLOUT``. Other bits report an error or a hang-up; a
read finds out which."""

EVENTS_PER_BATCH: Final = 64
"""Events of one batch at most; then the event loop runs its other callbacks. What is read,
handled and written together should fit into the processor's caches: with 512 events, a request
costs a third more."""

IDLE_TIME: Final = 0.05
"""Seconds without input after which ``Poller.wait_idle`` returns."""

Event = tuple[int, int]
"""A file descriptor, and a mask of ``READ`` and ``WRITE`` that it is ready for."""


class PollTarget(Protocol):
    """A connection, as the poller sees it."""

    def on_readable(self) -> None:
        """The socket has input, its end or an error."""

    def on_writable(self) -> None:
        """The socket takes bytes again."""

    def on_rescheduled(self) -> None:
        """Handle more of the input that was read already."""

    def on_error(self, error: Exception) -> None:
        """One of the other methods raised ``error``."""


class ReadinessSource(Protocol):
    """Reports which file descriptors are ready: epoll, or the event loop itself."""

    def open(self, on_ready: Callable[[], None]) -> None:
        """Start on the running event loop. Call ``on_ready`` when ``poll`` has events."""

    def close(self) -> None: ...

    def watch(self, fd: int, interest: int) -> None:
        """Watch ``fd`` for ``interest``, which replaces an earlier one."""

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``. To be called before it is closed."""

    def poll(self, most: int) -> Iterable[Event]: ...


class EpollSource:
    """One epoll instance, whose own descriptor is a single reader of the event loop.

    ``open`` creates the epoll instance, not ``__init__``: after a fork, parent and child would
    share one and get each other's events.
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
    """The event loop's readers and writers, for systems without epoll.

    It reports no hang-up of a descriptor that is watched for nothing, and it may report an
    event once after it has passed.
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
        events = list(self._ready.items())[:most]
        for fd, _ in events:
            del self._ready[fd]
        return events

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
    """Return epoll where there is one, otherwise the event loop."""
    return EpollSource() if hasattr(select, "epoll") else LoopSource()


class Poller:
    """Calls the connections whose sockets are ready, in batches.

    ``received_count`` returns the messages received since the start; a batch ends when it has
    added more than ``budget``. While ``is_paused`` returns True, nothing is read.
    ``on_batch_start`` and ``on_batch_end`` are called around every batch.
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
        self._targets: dict[int, PollTarget] = {}
        self._unhandled: list[Event] = []
        self._rescheduled: dict[PollTarget, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._batches = 0

    def start(self) -> None:
        """Start on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._source.open(self._batch)

    async def wait_idle(self) -> None:
        """Return when all input was read, and none has arrived for ``IDLE_TIME`` seconds."""
        before = -1
        while self._batches != before or self._rescheduled or self._unhandled:
            before = self._batches
            await asyncio.sleep(IDLE_TIME)

    def stop(self) -> None:
        self._source.close()
        self._loop = None
        self._targets.clear()
        self._unhandled.clear()
        self._rescheduled.clear()

    def watch(self, fd: int, target: PollTarget, interest: int) -> None:
        """Call ``target`` when ``fd`` is ready. With ``interest`` 0, only for an error."""
        self._source.watch(fd, interest)
        self._targets[fd] = target

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``. To be called before it is closed."""
        if self._targets.pop(fd, None) is not None:
            self._source.unwatch(fd)

    def reschedule(self, target: PollTarget) -> None:
        """Call ``peer.on_rescheduled`` in the next batch."""
        self._rescheduled[target] = None
        self._schedule()

    def unschedule(self, target: PollTarget) -> None:
        """Undo ``reschedule``."""
        self._rescheduled.pop(target, None)

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
            # Ready sockets are reported again. Only the connections that no event will
            # report need another batch.
            if self._rescheduled or self._unhandled:
                self._schedule()
            return
        self._batches += 1
        self._on_batch_start()
        try:
            count_before = self._received_count()
            self._run_rescheduled(count_before + self._budget // 2)
            self._handle_events(count_before + self._budget)
        finally:
            if self._rescheduled or self._unhandled:
                self._schedule()
            self._on_batch_end()

    def _run_rescheduled(self, limit: int) -> None:
        """Call the rescheduled connections, up to their share of the batch."""
        for _ in range(len(self._rescheduled)):
            target = next(iter(self._rescheduled), None)
            if target is None:
                break
            del self._rescheduled[target]
            try:
                target.on_rescheduled()
            except Exception as error:  # noqa: BLE001
                target.on_error(error)
            if self._received_count() > limit:
                break

    def _handle_events(self, limit: int) -> None:
        events = self._unhandled
        if len(events) < EVENTS_PER_BATCH:
            events = [*events, *self._source.poll(EVENTS_PER_BATCH - len(events))]
        self._unhandled = []
        find_target = self._targets.get
        for at, (fd, what) in enumerate(events, 1):
            target = find_target(fd)
            if target is None:
                continue
            try:
                if what & WRITE:
                    target.on_writable()
                if what & ~WRITE:
                    target.on_readable()
            except Exception as error:  # noqa: BLE001
                target.on_error(error)
            if self._received_count() > limit:
                self._unhandled = events[at:]
                break
