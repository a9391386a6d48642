"""Batched writes: messages sent during one iteration of the event loop are written together.

Each message gets the next sequence number. Messages for one link are collected in a list of
that link, messages for a group in one list for all its members. ``merge_writes`` merges the two
by sequence number.

Rules of this file:

1. A write never calls the application. Losses and drops are scheduled for the next iteration.
2. One flush is in flight for the whole node. A large flush is cut into slices, one for each
   iteration, and later messages are collected behind it. So each connection gets its messages
   in the order of sending, across rooms and direct messages.
3. Each link is in exactly one write group, so it is written to once. The frames of a group are
   in the order of their numbers. Links with the same frames share a group, and one joined buffer.
4. The innermost loop has no condition per link: a link whose peer does not read has replaced
   its ``write`` by its queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, cast

from eyewall.application.ports.message import EncodedMessage, WireFormat
from eyewall.application.ports.transport import Link

WRITES_PER_SLICE = 200
"""Writes in one iteration of the event loop: about half a millisecond."""

MAX_JOINED_BYTES = 64 * 1024
"""Bytes that are joined into one write at most. A larger frame is written alone."""

HIGH_WATER_FRAMES = 128
HIGH_WATER_BYTES = 256 * 1024
"""Collected messages, or their bytes, above which ``ready`` waits. A handler that sends in a
loop then lets the sockets be written now and then."""

STOP_READING_FRAMES = 1024
STOP_READING_BYTES = 4 * 1024 * 1024
"""Collected messages, or their bytes, above which no connection is read until the next flush."""

NumberedFrame = tuple[int, EncodedMessage | None]
"""A sequence number and its frame. In a link's own list, None excludes the link from the group
message of that number."""

CLOSE_MARKER: Final = EncodedMessage(b"", raw=True)
"""In a link's own list: the link is closing, and no later message is written."""

_number = itemgetter(0)


class WriteTarget(Link, Protocol):
    """A link, as the batcher sees it."""

    wire: WireFormat
    pending: list[NumberedFrame] | None
    """The collected frames of this link alone; None while there are none."""

    def write(self, data: bytes) -> int:
        """Write without blocking; returns the bytes taken. Raises ``OSError``."""

    def on_partial_write(self, frames: Sequence[EncodedMessage], data: bytes, sent: int) -> None:
        """Queue the rest: the socket took ``sent`` bytes of ``data``."""

    def on_write_error(self, frames: Sequence[EncodedMessage], error: Exception) -> None:
        """Close the connection, and report ``frames``: the socket can't be written to."""

    def queue_close_frame(self, late: Sequence[EncodedMessage] = ()) -> None:
        """Write the close frame next: all earlier messages were written or queued. Report
        ``late``, the messages behind it."""


class GroupSnapshot:
    """The members of a group at one moment, by wire format."""

    __slots__ = ("by_wire", "members")

    def __init__(self, links: Iterable[WriteTarget]) -> None:
        self.members = frozenset(links)
        by_wire: dict[WireFormat, list[WriteTarget]] = {}
        for link in self.members:
            by_wire.setdefault(link.wire, []).append(link)
        self.by_wire = [(wire, tuple(members)) for wire, members in by_wire.items()]


class WriteGroup(NamedTuple):
    """Frames, and the links of one wire format that they are written to."""

    links: Sequence[WriteTarget]
    wire: WireFormat
    frames: Sequence[EncodedMessage]
    last: bool = False
    """Whether the close frame follows."""
    late: Sequence[EncodedMessage] = ()
    """Frames behind the close frame, which are not written."""


GroupWrites = dict[GroupSnapshot, list[NumberedFrame]]


def merge_writes(group_writes: GroupWrites, owners: Iterable[WriteTarget]) -> list[WriteGroup]:
    """Return the groups to write to, and clear the links' own frames.

    ``owners`` are the links that have frames of their own.
    """
    with_own = [link for link in owners if link.pending is not None]
    if not group_writes:
        return [_merge_own(link, ()) for link in with_own]
    mixed: dict[WriteTarget, list[list[NumberedFrame]]] = {link: [] for link in with_own}
    for link in _members_of_several(group_writes):
        mixed.setdefault(link, [])
    groups: list[WriteGroup] = []
    special = frozenset(mixed)
    for snapshot, items in group_writes.items():
        needs_merge = snapshot.members & special
        for link in needs_merge:
            mixed[link].append(items)
        frames = [frame for _, frame in items if frame is not None]
        for wire, links in snapshot.by_wire:
            others = [link for link in links if link not in needs_merge] if needs_merge else links
            if others:
                groups.append(WriteGroup(others, wire, frames))
    shared: dict[tuple[int, ...], tuple[list[WriteTarget], list[list[NumberedFrame]]]] = {}
    for link, sources in mixed.items():
        if link.pending is not None:
            groups.append(_merge_own(link, sources))
        else:
            key = (id(link.wire), *map(id, sources))
            shared.setdefault(key, ([], sources))[0].append(link)
    for recipients, sources in shared.values():
        items = sorted((item for source in sources for item in source), key=_number)
        frames = [frame for _, frame in items if frame is not None]
        groups.append(WriteGroup(recipients, recipients[0].wire, frames))
    return groups


def _members_of_several(group_writes: GroupWrites) -> set[WriteTarget]:
    """Return the links that are in more than one of the snapshots."""
    repeated: set[WriteTarget] = set()
    if len(group_writes) > 1:
        seen: set[WriteTarget] = set()
        for snapshot in group_writes:
            repeated |= snapshot.members & seen
            seen |= snapshot.members
    return repeated


def _merge_own(link: WriteTarget, sources: Sequence[list[NumberedFrame]]) -> WriteGroup:
    """Merge the link's own frames with those of its groups (``sources``) by sequence number."""
    own, link.pending = link.pending, None
    assert own is not None
    if len(own) == 1 and not sources:
        only = own[0][1]
        if only is not None and only is not CLOSE_MARKER:
            return WriteGroup((link,), link.wire, (only,))
    items = own if not sources else sorted(own + [i for s in sources for i in s], key=_number)
    exceptions = [number for number, frame in own if frame is None or frame is CLOSE_MARKER]
    if not exceptions:  # the usual case
        return WriteGroup((link,), link.wire, [frame for _, frame in items if frame is not None])
    excluded = {number for number, frame in own if frame is None}
    frames = [frame for number, frame in items if frame is not None and number not in excluded]
    if CLOSE_MARKER not in frames:
        return WriteGroup((link,), link.wire, frames)
    end = frames.index(CLOSE_MARKER)
    return WriteGroup((link,), link.wire, frames[:end], last=True, late=frames[end + 1 :])


class SocketGroup:
    """The links of a room, say: they get the same messages. Implements ``BroadcastGroup``."""

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

    def broadcast(self, frame: EncodedMessage, skip: Collection[Link] = ()) -> int:
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
    """Writes for all links of the node. Implements ``MessageWriter``."""

    def __init__(self) -> None:
        self.current: Sequence[EncodedMessage] = ()
        """The frames of the write under way: a stalled link queues them."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self._group_writes: GroupWrites = {}
        self._links_with_own: list[WriteTarget] = []
        self._frames = 0
        self._bytes = 0
        self._flush_expected = False  # whether a call of ``flush`` is scheduled
        self._in_flight: Iterator[None] | None = None
        self._next_slice: asyncio.Handle | None = None
        self._below_high_water = asyncio.Event()

    def start(self) -> None:
        """Start on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._below_high_water = asyncio.Event()
        self._flush_expected = False
        if self._group_writes or self._links_with_own:
            self._schedule_flush()

    def stop(self) -> None:
        """Write what is collected, and stop."""
        self.flush_now()
        self._loop = None

    # --- for the application

    def new_group(self) -> SocketGroup:
        return SocketGroup(self)

    async def ready(self) -> None:
        while self._frames > HIGH_WATER_FRAMES or self._bytes > HIGH_WATER_BYTES:
            self._below_high_water.clear()
            await self._below_high_water.wait()

    # --- collecting

    @property
    def full(self) -> bool:
        """Backpressure: whether so much is collected that no connection should be read."""
        return self._frames > STOP_READING_FRAMES or self._bytes > STOP_READING_BYTES

    def collect_for_group(
        self, snapshot: GroupSnapshot, frame: EncodedMessage, skip: Collection[WriteTarget]
    ) -> None:
        """Collect a frame for the members of ``snapshot``, except ``skip``."""
        for wire, _ in snapshot.by_wire:
            size = len(frame.for_wire(wire))  # encoded here, so that its errors reach the caller
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
        """Collect a frame for one link. ``size`` is its bytes on the wire."""
        self._number += 1
        self._append(link, self._number, frame)
        self._frames += 1
        self._bytes += size
        if not self._flush_expected:
            self._schedule_flush()

    def has_pending(self, link: WriteTarget) -> bool:
        """Whether a message for ``link`` is, or may be, collected or in flight."""
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
        """Schedule no flush: a batch of reads begins, and calls ``flush`` at its end."""
        self._flush_expected = True

    def flush(self) -> None:
        """Write the collected messages, or their first slice, unless a flush is in flight."""
        self._flush_expected = False
        if self._in_flight is None and (self._group_writes or self._links_with_own):
            self._in_flight = self._begin_flush()
            self._write_slice()

    def flush_now(self) -> None:
        """Write all collected messages before returning."""
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        while self._in_flight is not None or self._group_writes or self._links_with_own:
            writes = self._in_flight or self._begin_flush()
            for _ in writes:
                pass
            self._in_flight = None

    def _schedule_flush(self) -> None:
        if self._loop is not None:
            self._flush_expected = True
            self._loop.call_soon(self.flush)

    def _begin_flush(self) -> Iterator[None]:
        group_writes, self._group_writes = self._group_writes, {}
        owners, self._links_with_own = self._links_with_own, []
        self._frames = self._bytes = 0
        self._below_high_water.set()
        return self._write(merge_writes(group_writes, owners))

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

    def _write(self, groups: Sequence[WriteGroup]) -> Iterator[None]:
        """Write to the groups. Yields at the end of each slice."""
        left = WRITES_PER_SLICE
        for links, wire, frames, last, late in groups:
            for chunk, data in _joined_writes(frames, wire):
                self.current = chunk
                rest = links
                while len(rest) >= left:  # the slice ends within these links, or with them
                    _write_to_each(rest[:left], chunk, data)
                    rest = rest[left:]
                    yield
                    left = WRITES_PER_SLICE
                _write_to_each(rest, chunk, data)
                left -= len(rest)
            if last:
                for link in links:
                    link.queue_close_frame(late)
        self.current = ()


def _write_to_each(
    links: Sequence[WriteTarget], frames: Sequence[EncodedMessage], data: bytes
) -> None:
    size = len(data)
    for link in links:
        try:
            sent = link.write(data)
            if sent != size:
                link.on_partial_write(frames, data, sent)
        except BlockingIOError:
            link.on_partial_write(frames, data, 0)
        except Exception as error:  # noqa: BLE001  (one link never stops the others)
            link.on_write_error(frames, error)


def _joined_writes(
    frames: Sequence[EncodedMessage], wire: WireFormat
) -> Iterable[tuple[Sequence[EncodedMessage], bytes]]:
    """Return the frames joined into as few writes as ``MAX_JOINED_BYTES`` allows: usually one."""
    if len(frames) == 1:
        return ((frames, frames[0].for_wire(wire)),)
    name = wire.name
    forms = [frame.built if frame.built_for == name else frame.for_wire(wire) for frame in frames]
    if sum(map(len, forms)) <= MAX_JOINED_BYTES:
        return ((frames, b"".join(forms)),)
    return _split(frames, forms)


def _split(
    frames: Sequence[EncodedMessage], built: Sequence[bytes]
) -> Iterator[tuple[Sequence[EncodedMessage], bytes]]:
    """Yield several writes, each with its frames joined."""
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
