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

from eyewall.application.ports.message import EncodedMessage, WireFormat
from eyewall.application.ports.transport import Link

WRITES_PER_SLICE = 200
"""Writes in one turn of the loop: about half a millisecond."""

MAX_JOINED_BYTES = 64 * 1024
"""Bytes that are joined into one write at most. A larger frame goes alone."""

HIGH_WATER_FRAMES = 128
HIGH_WATER_BYTES = 256 * 1024
"""Collected messages, or their bytes, from which ``ready`` waits: a sender in a loop
lets the sockets be written, and read at the other end, now and then."""

STOP_READING_FRAMES = 1024
STOP_READING_BYTES = 4 * 1024 * 1024
"""From here on nothing more is read from any connection until it was written."""

NumberedFrame = tuple[int, EncodedMessage | None]
"""A frame with its number. Among a link's own: None where it was to be skipped."""

CLOSE_MARKER: Final = EncodedMessage(b"", raw=True)
"""Among a link's own frames: its close was decided here, nothing later goes out."""

_number = itemgetter(0)


class WriteTarget(Link, Protocol):
    """A link, as what writes to it sees it."""

    wire: WireFormat
    pending: list[NumberedFrame] | None
    """Its collected frames; None while there are none, and for good once it has ended."""

    def write(self, data: bytes) -> int:
        """The socket's own ``send``, for as long as the peer reads."""

    def on_partial_write(self, frames: Sequence[EncodedMessage], data: bytes, sent: int) -> None:
        """Keep what the socket did not take: it took ``sent`` bytes of ``data``."""

    def on_write_error(self, error: Exception) -> None:
        """The socket can't be written to any more."""

    def queue_close_frame(self) -> None:
        """Its last frame was written or queued: the close frame is next."""


class GroupSnapshot:
    """Who was in an audience at one moment, by wire."""

    __slots__ = ("by_wire", "members")

    def __init__(self, links: Iterable[WriteTarget]) -> None:
        self.members = frozenset(links)
        parts: dict[WireFormat, list[WriteTarget]] = {}
        for link in self.members:
            parts.setdefault(link.wire, []).append(link)
        self.by_wire = [(wire, tuple(members)) for wire, members in parts.items()]


class WriteGroup(NamedTuple):
    """The same frames for one or many links of one wire."""

    links: Sequence[WriteTarget]
    wire: WireFormat
    frames: Sequence[EncodedMessage]
    last: bool = False
    """The links end with it."""


GroupWrites = dict[GroupSnapshot, list[NumberedFrame]]


def merge_writes(runs: GroupWrites, direct: Iterable[WriteTarget]) -> list[WriteGroup]:
    """Return what to write to whom; takes the links' own frames away from them."""
    owners = [link for link in direct if link.pending is not None]
    if not runs:
        return [_merge_own(link, ()) for link in owners]
    mixed: dict[WriteTarget, list[list[NumberedFrame]]] = {link: [] for link in owners}
    for link in _members_of_several(runs):
        mixed.setdefault(link, [])
    parcels: list[WriteGroup] = []
    special = frozenset(mixed)
    for snapshot, items in runs.items():
        concerned = snapshot.members & special
        for link in concerned:
            mixed[link].append(items)
        frames = [frame for _, frame in items if frame is not None]
        for wire, links in snapshot.by_wire:
            others = [link for link in links if link not in concerned] if concerned else links
            if others:
                parcels.append(WriteGroup(others, wire, frames))
    shared: dict[tuple[int, ...], tuple[list[WriteTarget], list[list[NumberedFrame]]]] = {}
    for link, sources in mixed.items():
        if link.pending is not None:
            parcels.append(_merge_own(link, sources))
        else:
            key = (id(link.wire), *map(id, sources))
            shared.setdefault(key, ([], sources))[0].append(link)
    for alike, sources in shared.values():
        items = sorted((item for source in sources for item in source), key=_number)
        frames = [frame for _, frame in items if frame is not None]
        parcels.append(WriteGroup(alike, alike[0].wire, frames))
    return parcels


def _members_of_several(runs: GroupWrites) -> set[WriteTarget]:
    """Return the links that are in more than one of the runs."""
    several: set[WriteTarget] = set()
    if len(runs) > 1:
        seen: set[WriteTarget] = set()
        for snapshot in runs:
            several |= snapshot.members & seen
            seen |= snapshot.members
    return several


def _merge_own(link: WriteTarget, sources: Sequence[list[NumberedFrame]]) -> WriteGroup:
    """Merge the link's own frames with those of the runs that it is in."""
    own, link.pending = link.pending, None
    assert own is not None
    if len(own) == 1 and not sources:
        only = own[0][1]
        if only is not None and only is not CLOSE_MARKER:
            return WriteGroup((link,), link.wire, (only,))
    items = own if not sources else sorted(own + [i for s in sources for i in s], key=_number)
    odd = [number for number, frame in own if frame is None or frame is CLOSE_MARKER]
    if not odd:  # nothing to leave out, as nearly always
        return WriteGroup((link,), link.wire, [frame for _, frame in items if frame is not None])
    holes = {number for number, frame in own if frame is None}
    frames: list[EncodedMessage] = []
    for number, frame in items:
        if frame is CLOSE_MARKER:
            return WriteGroup((link,), link.wire, frames, last=True)
        if frame is not None and number not in holes:
            frames.append(frame)
    return WriteGroup((link,), link.wire, frames)


class SocketGroup:
    """Links that get the same messages. Implements ``Audience``."""

    __slots__ = ("_batcher", "_links", "_snapshot")

    def __init__(self, batcher: WriteBatcher) -> None:
        self._batcher = batcher
        self._links: set[WriteTarget] = set()
        self._snapshot: GroupSnapshot | None = None

    def add(self, link: Link) -> None:
        self._links.add(cast("WriteTarget", link))
        self._snapshot = None

    def discard(self, link: Link) -> None:
        self._links.discard(cast("WriteTarget", link))
        self._snapshot = None

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def publish(self, frame: EncodedMessage, skip: Collection[Link] = ()) -> int:
        if not self._links:
            return 0
        snapshot = self._snapshot
        if snapshot is None:
            snapshot = self._snapshot = GroupSnapshot(self._links)
        left_out = (
            snapshot.members.intersection(cast("Collection[WriteTarget]", skip)) if skip else ()
        )
        self._batcher.collect_for_group(snapshot, frame, left_out)
        return len(snapshot.members) - len(left_out)


class WriteBatcher:
    """Writes for all links of the node. Implements ``Outbound``."""

    def __init__(self) -> None:
        self.current: Sequence[EncodedMessage] = ()
        """The frames that are being written: what a stalled link queues."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self._group_writes: GroupWrites = {}
        self._links_with_own: list[WriteTarget] = []
        self._frames = 0
        self._bytes = 0
        self._flush_expected = False  # whether somebody will call ``flush``
        self._in_flight: Iterator[None] | None = None
        self._next_slice: asyncio.Handle | None = None
        self._below_high_water = asyncio.Event()

    def start(self) -> None:
        """Begin on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._below_high_water = asyncio.Event()
        self._flush_expected = False
        if self._group_writes or self._links_with_own:
            self._schedule_flush()

    def stop(self) -> None:
        """Write what is collected, and end."""
        self.flush_now()
        self._loop = None

    # --- for the application

    def audience(self) -> SocketGroup:
        return SocketGroup(self)

    async def ready(self) -> None:
        while self._frames > HIGH_WATER_FRAMES or self._bytes > HIGH_WATER_BYTES:
            self._below_high_water.clear()
            await self._below_high_water.wait()

    # --- collecting

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that reading should wait too."""
        return self._frames > STOP_READING_FRAMES or self._bytes > STOP_READING_BYTES

    def collect_for_group(
        self, snapshot: GroupSnapshot, frame: EncodedMessage, skip: Collection[WriteTarget]
    ) -> None:
        """Collect a frame for all who are in ``snapshot``, except ``skip``."""
        for wire, _ in snapshot.by_wire:
            size = len(frame.form(wire))  # built here, so that the caller gets its errors
        for link in skip:
            self._append(link, self._number + 1, None)
        self._number += 1
        items = self._group_writes.get(snapshot)
        if items is None:
            items = self._group_writes[snapshot] = []
        items.append((self._number, frame))
        self._frames += 1
        self._bytes += size
        if not self._flush_expected:
            self._schedule_flush()

    def collect(self, link: WriteTarget, frame: EncodedMessage, size: int) -> None:
        """Collect a frame for one link; ``size`` is its bytes on the wire."""
        self._number += 1
        self._append(link, self._number, frame)
        self._frames += 1
        self._bytes += size
        if not self._flush_expected:
            self._schedule_flush()

    def has_pending(self, link: WriteTarget) -> bool:
        """Whether something collected is, or may be, for ``link``."""
        return (
            link.pending is not None
            or self._in_flight is not None
            or any(link in snapshot.members for snapshot in self._group_writes)
        )

    def _append(self, link: WriteTarget, number: int, frame: EncodedMessage | None) -> None:
        own = link.pending
        if own is None:
            link.pending = [(number, frame)]
            self._links_with_own.append(link)
        else:
            own.append((number, frame))

    # --- writing

    def expect_flush(self) -> None:
        """A batch of reads begins: ``flush`` will be called at its end."""
        self._flush_expected = True

    def flush(self) -> None:
        """Write what was collected, or its first slice, unless a flush is in flight."""
        self._flush_expected = False
        if self._in_flight is None and (self._group_writes or self._links_with_own):
            self._in_flight = self._begin_flush()
            self._write_slice()

    def flush_now(self) -> None:
        """Write all that was collected, without waiting for a turn."""
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        while self._in_flight is not None or self._group_writes or self._links_with_own:
            flight = self._in_flight or self._begin_flush()
            for _ in flight:
                pass
            self._in_flight = None

    def _schedule_flush(self) -> None:
        if self._loop is not None:
            self._flush_expected = True
            self._loop.call_soon(self.flush)

    def _begin_flush(self) -> Iterator[None]:
        runs, self._group_writes = self._group_writes, {}
        direct, self._links_with_own = self._links_with_own, []
        self._frames = self._bytes = 0
        self._below_high_water.set()
        return self._write(merge_writes(runs, direct))

    def _write_slice(self) -> None:
        """Write one slice of the flush in flight."""
        self._next_slice = None
        assert self._in_flight is not None
        for _ in self._in_flight:
            if self._loop is not None:
                self._next_slice = self._loop.call_soon(self._write_slice)
                return
        self._in_flight = None
        if (self._group_writes or self._links_with_own) and not self._flush_expected:
            self._schedule_flush()

    def _write(self, parcels: Sequence[WriteGroup]) -> Iterator[None]:
        """Write the parcels; yields where a slice ends."""
        room = WRITES_PER_SLICE
        for links, wire, frames, last in parcels:
            for chunk, blob in _joined_writes(frames, wire):
                self.current = chunk
                rest = links
                while len(rest) >= room:  # the slice ends within these links, or with them
                    _write_to_each(rest[:room], chunk, blob)
                    rest = rest[room:]
                    yield
                    room = WRITES_PER_SLICE
                _write_to_each(rest, chunk, blob)
                room -= len(rest)
            if last:
                for link in links:
                    link.queue_close_frame()
        self.current = ()


def _write_to_each(
    links: Sequence[WriteTarget], frames: Sequence[EncodedMessage], blob: bytes
) -> None:
    size = len(blob)
    for link in links:
        try:
            sent = link.write(blob)
            if sent != size:
                link.on_partial_write(frames, blob, sent)
        except BlockingIOError:
            link.on_partial_write(frames, blob, 0)
        except Exception as error:  # noqa: BLE001  (one link never stops the others)
            link.on_write_error(error)


def _joined_writes(
    frames: Sequence[EncodedMessage], wire: WireFormat
) -> Iterable[tuple[Sequence[EncodedMessage], bytes]]:
    """Join the frames into as few writes as ``MAX_JOINED_BYTES`` lets: nearly always into one."""
    if len(frames) == 1:
        return ((frames, frames[0].form(wire)),)
    name = wire.name
    forms = [frame.built if frame.built_for == name else frame.form(wire) for frame in frames]
    if sum(map(len, forms)) <= MAX_JOINED_BYTES:
        return ((frames, b"".join(forms)),)
    return _split(frames, forms)


def _split(
    frames: Sequence[EncodedMessage], built: Sequence[bytes]
) -> Iterator[tuple[Sequence[EncodedMessage], bytes]]:
    """Join frames that are too much for one write, one write after the other."""
    chunk: list[EncodedMessage] = []
    forms: list[bytes] = []
    size = 0
    for frame, form in zip(frames, built, strict=True):
        if forms and size + len(form) > MAX_JOINED_BYTES:
            yield chunk, b"".join(forms)
            chunk, forms, size = [], [], 0
        chunk.append(frame)
        forms.append(form)
        size += len(form)
    if forms:
        yield chunk, b"".join(forms)
