"""Who gets which frames, when what was collected goes out. Pure.

Messages are collected as they are sent, each with a number that is one higher than
the last: a link's own frames in a list of its own, an audience's in one list for all
who were in it at that moment. This module brings the two together so that

1. every link stands in exactly one parcel, and so is written to once;
2. the frames of a parcel are in the order of their numbers;
3. links that get the same frames share a parcel, and so one joined blob.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

from eyewall.application.frames import Frame, Wire
from eyewall.application.ports import Link

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
