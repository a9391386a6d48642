"""Many who don't read: the node holds so much for all of them together, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.clients import Peer
from tests.faults.hostile import GROWTH, unharmed
from tests.faults.support import MIB, UNIT, HubProcess, until

BOUND = 2 * MIB
HOSTILE = 20
PAD = 16 * 1024
EACH = 60
"""Messages sent to each: fewer than its own queue would hold, and ten times ``BOUND`` in all."""


@pytest.fixture
def hub(tmp_path) -> Iterator[HubProcess]:
    heartbeat = {"interval": 1e6, "pong_timeout": 2e6, "write_wait": 1000 * UNIT}
    options = {"heartbeat": heartbeat, "queue": {"max_bytes": BOUND // 2}}
    with HubProcess(tmp_path, max_queued=BOUND, options=options) as hub:
        yield hub


def enter(hub: HubProcess, room: str) -> Peer:
    """Connect a client that does not read, in a room of its own."""
    peer = Peer.connect(hub.port, buffer=4096, rooms=room)
    until(lambda: hub.noted("join", room), "joining")
    return peer


def test_what_all_queues_hold_has_a_bound_and_those_pay_who_hold_the_most(hub):
    with unharmed(hub) as witness:
        rss = hub.rss
        rooms = [f"hog-{n}" for n in range(HOSTILE)]
        hogs = [enter(hub, room) for room in rooms]
        small = enter(hub, "small")
        hub.ask("publish", room="small", first=0, count=40, pad=1000)
        for room in rooms:
            hub.ask("publish", room=room, first=0, count=EACH, pad=PAD)
            assert hub.ask("held")["queued"] <= BOUND
            witness.is_answered()

        assert hub.ask("held")["queued"] > BOUND / 2
        assert hub.rss - rss < GROWTH
        until(lambda: sum(hub.ask("stats")["reported"].values()) > 0, "reports")
        stats = hub.ask("stats")
        assert stats["drops"] > HOSTILE * EACH / 2
        hub.ask("publish", room="small", first=40, count=1, pad=1000)
        until(lambda: small.read() and len(small.of("news")) == 41, "what the small one waits for")
        assert [data["n"] for data in small.of("news")] == list(range(41))
        for peer in [*hogs, small]:
            peer.reset()


def test_what_is_the_same_for_all_is_held_once(hub):
    """A room of stalled members costs what one of them costs, and nothing is dropped."""
    with unharmed(hub):
        peers = [Peer.connect(hub.port, buffer=4096, rooms="lab") for _ in range(HOSTILE)]
        until(lambda: sum(line[0] == "join" for line in hub.notes) == HOSTILE, "joining")
        hub.ask("publish", room="lab", first=0, count=EACH, pad=PAD)

        assert hub.ask("held")["queued"] < EACH * (PAD + 1000) + HOSTILE * 64 * 1024
        assert hub.ask("stats")["drops"] == 0
        for peer in peers:
            peer.reset()
