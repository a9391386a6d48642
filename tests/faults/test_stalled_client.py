"""One member of a large room stops reading: nobody else notices, no message is unaccounted for."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from tests.faults.clients import Crowd, Peer
from tests.faults.support import MIB, UNIT, HubProcess, until

pytestmark = pytest.mark.usefixtures("transport")

QUEUE = 64
"""Messages that may wait for one client."""
PAD = 1000
"""Bytes of a message's payload."""
BURST = 48
"""Messages published at a time: fewer than the queue holds, so that who reads loses none."""
BURSTS = 9

GROWTH = 4 * MIB
"""What the server may grow by. The outbox of the stalled one holds 64 KiB, and 64 messages
that others may be late by are shared; what was published is a hundred times as much."""


def members() -> int:
    """How many there are: 1,000, or fewer where descriptors are scarce."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(1000, (hard - 200) // 2)


class Stalled:
    """A room with one member that does not read, and what was sent to it."""

    def __init__(self, hub: HubProcess) -> None:
        self.hub = hub
        count = members()
        self.stalled = Peer.connect(hub.port, user="stalled", rooms="lab", buffer=4096)
        self.reference = Peer.connect(hub.port, rooms="lab")
        others = [Peer.connect(hub.port, rooms="lab", keep=False) for _ in range(count - 2)]
        self.others = Crowd([self.reference, *others])
        until(lambda: sum(line[0] == "join" for line in hub.notes) == count, "joining")
        self.published = 0
        self.meant = 0
        """How many messages were meant for the stalled one."""

    def publish(self, count: int) -> None:
        """Publish, and have the others read it all."""
        reached = self.hub.ask("publish", room="lab", first=self.published, count=count, pad=PAD)
        self.published += count
        self.meant += reached - count * len(self.others.peers)
        self.others.until(self.all_read, "reading", within=30 * UNIT)

    def all_read(self) -> bool:
        self.others.pump()
        reference = self.others.peers[0]
        return len(reference.messages) == self.published and all(
            peer.total == reference.total for peer in self.others
        )

    def wake(self) -> list[int]:
        """Let the stalled one read all that waits for it; returns the numbers that came.

        Another burst tells that it has them all, and that it misses nothing from now on.
        """
        before = self.published
        until(lambda: not self.stalled.read() and not self.hub.ask("queued", user="stalled"))
        self.publish(BURST)
        until(lambda: self.stalled.read() and self.numbers[-1] == self.published - 1, "catching up")
        numbers = self.numbers
        assert numbers[-BURST:] == list(range(before, self.published))
        return numbers[:-BURST]

    @property
    def numbers(self) -> list[int]:
        return [data["n"] for data in self.stalled.of("news")]

    def assert_others_have_all(self) -> None:
        """In order and once: the reference has each number, and the others the same bytes."""
        assert [data["n"] for data in self.reference.of("news")] == list(range(self.published))
        digests = {peer.digest.digest() for peer in self.others if not peer.keep}
        assert len(digests) == 1

    def assert_drops(self, count: int) -> None:
        """So many were counted, and reported as what they are."""
        stats = until(lambda: self.told(count), "reporting")
        assert stats["drops"] == count
        assert stats["reported"] == {"broadcast_full": count}

    def told(self, count: int) -> Any:
        stats = self.hub.ask("stats")
        return stats if sum(stats["reported"].values()) >= count else None

    def __enter__(self) -> Stalled:
        return self

    def __exit__(self, *_: object) -> None:
        self.others.__exit__()
        self.stalled.close()


def stall(tmp_path: Any, policy: str) -> HubProcess:
    return HubProcess(
        tmp_path,
        options={
            "queue": {"size": QUEUE, "drop_policy": policy},
            # No pings: they would come to each at another place between the messages.
            "heartbeat": {"interval": 1e6, "pong_timeout": 2e6, "write_wait": 100 * UNIT},
        },
    )


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_what_does_not_fit_is_dropped_by_the_policy_and_counted(tmp_path, policy):
    with stall(tmp_path, policy) as hub, Stalled(hub) as room:
        before = hub.rss

        for _ in range(BURSTS):
            room.publish(BURST)
        grown = hub.rss - before
        sent = room.published
        numbers = room.wake()
        dropped = sent - len(numbers)

        assert grown < GROWTH
        assert room.meant == room.published
        assert dropped > QUEUE
        kept = 0 if policy == "drop_newest" else QUEUE
        first = len(numbers) - kept
        assert numbers == [*range(first), *range(sent - kept, sent)]
        room.assert_others_have_all()
        room.assert_drops(dropped)
        assert hub.complaints == []


def test_who_overflows_under_the_disconnecting_policy_is_told_why(tmp_path):
    """It still gets what was queued before, in order; then 4413, and nothing more."""
    with stall(tmp_path, "drop_and_disconnect") as hub, Stalled(hub) as room:
        before = hub.rss

        for _ in range(BURSTS):
            room.publish(BURST)
        grown = hub.rss - before
        assert hub.noted("disconnect", "stalled")
        until(lambda: room.stalled.read() and room.stalled.end, "the end")
        numbers = room.numbers
        dropped = room.meant - len(numbers)

        assert grown < GROWTH
        assert room.stalled.closed == (4413, "slow_consumer")
        assert room.stalled.end == "eof"
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > QUEUE
        assert 1 <= dropped <= BURST
        assert room.meant < room.published
        room.assert_others_have_all()
        room.assert_drops(dropped)
        assert ["disconnect", "slow_consumer"] in [[n[0], n[-1]] for n in hub.notes]
        assert hub.complaints == []
