"""Out: what is sent during a turn of the loop is collected, and written at its end.

Every message gets a number that is one higher than the last: a link's own frames are in a
list of its own, those for a group in one list for all who were in it at that moment.

Rules of this file:

1. Nothing that is called from here calls the application: what is lost or dropped
   while writing is told to it in the next turn.
2. One flush is in flight for the whole node. A large one is cut into slices, one a
   turn; what is sent meanwhile is collected behind it. So the order of every
   connection is the order of sending, across rooms and direct messages.
3. Every link stands in exactly one parcel, and so is written to once. The frames of a
   parcel are in the order of their numbers. Links that get the same frames share a
   parcel, and so one joined blob.
4. The innermost loop has no test per link: a link whose peer does not read has put
   its queue in the place of its ``write``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, cast

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

Item = tuple[int, Frame | None]
"""A frame with its number. Among a link's own: None where it was to be skipped."""

LAST: Final = Frame(b"", raw=True)
"""Among a link's own frames: its close was decided here, nothing later goes out."""

_number = itemgetter(0)


class Outlet(Link, Protocol):
    """A link, as what writes to it sees it."""

    wire: Wire
    own: list[Item] | None
    """Its collected frames; None while there are none, and for good once it has ended."""

    def write(self, data: bytes) -> int:
        """The socket's own ``send``, for as long as the peer reads."""

    def stall(self, frames: Sequence[Frame], data: bytes, sent: int) -> None:
        """Keep what the socket did not take: it took ``sent`` bytes of ``data``."""

    def write_failed(self, error: Exception) -> None:
        """The socket can't be written to any more."""

    def part(self) -> None:
        """Its last frame was written or queued: the close frame is next."""


class Snapshot:
    """Who was in an audience at one moment, by wire."""

    __slots__ = ("everyone", "parts")

    def __init__(self, links: Iterable[Outlet]) -> None:
        self.everyone = frozenset(links)
        parts: dict[Wire, list[Outlet]] = {}
        for link in self.everyone:
            parts.setdefault(link.wire, []).append(link)
        self.parts = [(wire, tuple(members)) for wire, members in parts.items()]


class Parcel(NamedTuple):
    """The same frames for one or many links of one wire."""

    links: Sequence[Outlet]
    wire: Wire
    frames: Sequence[Frame]
    last: bool = False
    """The links end with it."""


Runs = dict[Snapshot, list[Item]]


def plan(runs: Runs, direct: Iterable[Outlet]) -> list[Parcel]:
    """Return what to write to whom; takes the links' own frames away from them."""
    owners = [link for link in direct if link.own is not None]
    if not runs:
        return [_own_parcel(link, ()) for link in owners]
    mixed: dict[Outlet, list[list[Item]]] = {link: [] for link in owners}
    for link in _in_several(runs):
        mixed.setdefault(link, [])
    parcels: list[Parcel] = []
    special = frozenset(mixed)
    for snapshot, items in runs.items():
        concerned = snapshot.everyone & special
        for link in concerned:
            mixed[link].append(items)
        frames = [frame for _, frame in items if frame is not None]
        for wire, links in snapshot.parts:
            others = [link for link in links if link not in concerned] if concerned else links
            if others:
                parcels.append(Parcel(others, wire, frames))
    shared: dict[tuple[int, ...], tuple[list[Outlet], list[list[Item]]]] = {}
    for link, sources in mixed.items():
        if link.own is not None:
            parcels.append(_own_parcel(link, sources))
        else:
            key = (id(link.wire), *map(id, sources))
            shared.setdefault(key, ([], sources))[0].append(link)
    for alike, sources in shared.values():
        items = sorted((item for source in sources for item in source), key=_number)
        frames = [frame for _, frame in items if frame is not None]
        parcels.append(Parcel(alike, alike[0].wire, frames))
    return parcels


def _in_several(runs: Runs) -> set[Outlet]:
    """Return the links that are in more than one of the runs."""
    several: set[Outlet] = set()
    if len(runs) > 1:
        seen: set[Outlet] = set()
        for snapshot in runs:
            several |= snapshot.everyone & seen
            seen |= snapshot.everyone
    return several


def _own_parcel(link: Outlet, sources: Sequence[list[Item]]) -> Parcel:
    """Merge the link's own frames with those of the runs that it is in."""
    own, link.own = link.own, None
    assert own is not None
    if len(own) == 1 and not sources:
        only = own[0][1]
        if only is not None and only is not LAST:
            return Parcel((link,), link.wire, (only,))
    items = own if not sources else sorted(own + [i for s in sources for i in s], key=_number)
    odd = [number for number, frame in own if frame is None or frame is LAST]
    if not odd:  # nothing to leave out, as nearly always
        return Parcel((link,), link.wire, [frame for _, frame in items if frame is not None])
    holes = {number for number, frame in own if frame is None}
    frames: list[Frame] = []
    for number, frame in items:
        if frame is LAST:
            return Parcel((link,), link.wire, frames, last=True)
        if frame is not None and number not in holes:
            frames.append(frame)
    return Parcel((link,), link.wire, frames)


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
