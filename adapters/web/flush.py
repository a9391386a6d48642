"""Out: what is sent during a turn of the loop is collected, and written at its end.

Rules of this file:

1. Nothing that is called from here calls the application: what is lost or dropped
   while writing is told to it in the next turn.
2. One flush is in flight for the whole node. A large one is cut into slices, one a
   turn; what is sent meanwhile is collected behind it. So the order of every
   connection is the order of sending, across rooms and direct messages.
3. The innermost loop has no test per link: a link whose peer does not read has put
   its queue in the place of its ``write``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import cast

from eyewall.adapters.web.plan import Outlet, Parcel, Runs, Snapshot, plan
from eyewall.application.frames import Frame, Wire
from eyewall.application.ports import Link

SLICE = 200
"""Writes in one turn of the loop: about half a millisecond."""

BLOB = 64 * 1024
"""Bytes that are joined into one write at most. A larger frame goes alone."""

CROWDED_FRAMES = 128
CROWDED_BYTES = 256 * 1024
"""Collected messages, or their bytes, from which ``ready`` waits: a sender in a loop
lets the sockets be written, and read at the other end, now and then."""

FULL_FRAMES = 1024
FULL_BYTES = 4 * 1024 * 1024
"""From here on nothing more is read from any connection until it was written."""


class Members:
    """Links that get the same messages. Implements ``Audience``."""

    __slots__ = ("_flush", "_links", "_snapshot")

    def __init__(self, flush: Flush) -> None:
        self._flush = flush
        self._links: set[Outlet] = set()
        self._snapshot: Snapshot | None = None

    def add(self, link: Link) -> None:
        self._links.add(cast("Outlet", link))
        self._snapshot = None

    def discard(self, link: Link) -> None:
        self._links.discard(cast("Outlet", link))
        self._snapshot = None

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def publish(self, frame: Frame, skip: Collection[Link] = ()) -> int:
        if not self._links:
            return 0
        snapshot = self._snapshot
        if snapshot is None:
            snapshot = self._snapshot = Snapshot(self._links)
        left_out = snapshot.everyone.intersection(cast("Collection[Outlet]", skip)) if skip else ()
        self._flush.publish(snapshot, frame, left_out)
        return len(snapshot.everyone) - len(left_out)


class Flush:
    """Writes for all links of the node. Implements ``Outbound``."""

    def __init__(self) -> None:
        self.current: Sequence[Frame] = ()
        """The frames that are being written: what a stalled link queues."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self._runs: Runs = {}
        self._direct: list[Outlet] = []
        self._frames = 0
        self._bytes = 0
        self._awaited = False  # whether somebody will call ``turn``
        self._flight: Iterator[None] | None = None
        self._next_slice: asyncio.Handle | None = None
        self._uncrowded = asyncio.Event()

    def start(self) -> None:
        """Begin on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._uncrowded = asyncio.Event()
        self._awaited = False
        if self._runs or self._direct:
            self._wake()

    def stop(self) -> None:
        """Write what is collected, and end."""
        self.now()
        self._loop = None

    # --- for the application

    def audience(self) -> Members:
        return Members(self)

    async def ready(self) -> None:
        while self._frames > CROWDED_FRAMES or self._bytes > CROWDED_BYTES:
            self._uncrowded.clear()
            await self._uncrowded.wait()

    # --- collecting

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that reading should wait too."""
        return self._frames > FULL_FRAMES or self._bytes > FULL_BYTES

    def publish(self, snapshot: Snapshot, frame: Frame, skip: Collection[Outlet]) -> None:
        """Collect a frame for all who are in ``snapshot``, except ``skip``."""
        for wire, _ in snapshot.parts:
            size = len(frame.form(wire))  # built here, so that the caller gets its errors
        for link in skip:
            self._own(link, self._number + 1, None)
        self._number += 1
        items = self._runs.get(snapshot)
        if items is None:
            items = self._runs[snapshot] = []
        items.append((self._number, frame))
        self._frames += 1
        self._bytes += size
        if not self._awaited:
            self._wake()

    def send(self, link: Outlet, frame: Frame, size: int) -> None:
        """Collect a frame for one link; ``size`` is its bytes on the wire."""
        self._number += 1
        self._own(link, self._number, frame)
        self._frames += 1
        self._bytes += size
        if not self._awaited:
            self._wake()

    def concerns(self, link: Outlet) -> bool:
        """Whether something collected is, or may be, for ``link``."""
        return (
            link.own is not None
            or self._flight is not None
            or any(link in snapshot.everyone for snapshot in self._runs)
        )

    def _own(self, link: Outlet, number: int, frame: Frame | None) -> None:
        own = link.own
        if own is None:
            link.own = [(number, frame)]
            self._direct.append(link)
        else:
            own.append((number, frame))

    # --- writing

    def hold(self) -> None:
        """A batch of reads begins: ``turn`` will be called at its end."""
        self._awaited = True

    def turn(self) -> None:
        """Write what was collected, or its first slice, unless a flush is in flight."""
        self._awaited = False
        if self._flight is None and (self._runs or self._direct):
            self._flight = self._launch()
            self._advance()

    def now(self) -> None:
        """Write all that was collected, without waiting for a turn."""
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        while self._flight is not None or self._runs or self._direct:
            flight = self._flight or self._launch()
            for _ in flight:
                pass
            self._flight = None

    def _wake(self) -> None:
        if self._loop is not None:
            self._awaited = True
            self._loop.call_soon(self.turn)

    def _launch(self) -> Iterator[None]:
        runs, self._runs = self._runs, {}
        direct, self._direct = self._direct, []
        self._frames = self._bytes = 0
        self._uncrowded.set()
        return self._write(plan(runs, direct))

    def _advance(self) -> None:
        """Write one slice of the flush in flight."""
        self._next_slice = None
        assert self._flight is not None
        for _ in self._flight:
            if self._loop is not None:
                self._next_slice = self._loop.call_soon(self._advance)
                return
        self._flight = None
        if (self._runs or self._direct) and not self._awaited:
            self._wake()

    def _write(self, parcels: Sequence[Parcel]) -> Iterator[None]:
        """Write the parcels; yields where a slice ends."""
        room = SLICE
        for links, wire, frames, last in parcels:
            for chunk, blob in _blobs(frames, wire):
                self.current = chunk
                rest = links
                while len(rest) >= room:  # the slice ends within these links, or with them
                    _burst(rest[:room], chunk, blob)
                    rest = rest[room:]
                    yield
                    room = SLICE
                _burst(rest, chunk, blob)
                room -= len(rest)
            if last:
                for link in links:
                    link.part()
        self.current = ()


def _burst(links: Sequence[Outlet], frames: Sequence[Frame], blob: bytes) -> None:
    size = len(blob)
    for link in links:
        try:
            sent = link.write(blob)
            if sent != size:
                link.stall(frames, blob, sent)
        except BlockingIOError:
            link.stall(frames, blob, 0)
        except Exception as error:  # noqa: BLE001  (one link never stops the others)
            link.write_failed(error)


def _blobs(frames: Sequence[Frame], wire: Wire) -> Iterable[tuple[Sequence[Frame], bytes]]:
    """Join the frames into as few writes as ``BLOB`` lets: nearly always into one."""
    if len(frames) == 1:
        return ((frames, frames[0].form(wire)),)
    name = wire.name
    forms = [frame.built if frame.built_for == name else frame.form(wire) for frame in frames]
    if sum(map(len, forms)) <= BLOB:
        return ((frames, b"".join(forms)),)
    return _cut(frames, forms)


def _cut(
    frames: Sequence[Frame], built: Sequence[bytes]
) -> Iterator[tuple[Sequence[Frame], bytes]]:
    """Join frames that are too much for one write, one write after the other."""
    chunk: list[Frame] = []
    forms: list[bytes] = []
    size = 0
    for frame, form in zip(frames, built, strict=True):
        if forms and size + len(form) > BLOB:
            yield chunk, b"".join(forms)
            chunk, forms, size = [], [], 0
        chunk.append(frame)
        forms.append(form)
        size += len(form)
    if forms:
        yield chunk, b"".join(forms)
