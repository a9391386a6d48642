"""What a client gets from one sender is in the order of sending, whatever the way it took."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.clients import Crowd, Peer
from tests.faults.support import UNIT, HubProcess, until

pytestmark = pytest.mark.usefixtures("transport")

ROOM = 260
"""Members of each room: more than the server writes to in one turn."""
BOTH = 80
"""Those who are in both."""
SLOWLY = 10
"""Those of them who read little by little, from a small buffer."""
BURST = 300
PAD = 500
"""Bytes of a message: a burst to one client is more than twice the 64 KiB of a write."""

SENDERS = ("ada", "bob")
TARGETS = ("room:lab", "room:hall", "user:both0", "room:lab", "user:slow0")
"""Where each sender's messages go, by turns."""


@pytest.fixture
def hub(tmp_path) -> Iterator[HubProcess]:
    # Queues that hold everything: what is under test is the order, not the policy.
    options = {"queue": {"size": 10_000}, "lane_queue": BURST * 4, "worker_queue": BURST * 10}
    with HubProcess(tmp_path, options=options) as hub:
        yield hub


class Slow(Peer):
    """Reads a few KiB at a time."""

    def read(self, most: int = 3000) -> bool:
        return super().read(most)


def everybody(port: int) -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    for n in range(ROOM - BOTH):
        for room in ("lab", "hall"):
            found[f"{room}{n}"] = Peer.connect(port, user=f"{room}{n}", rooms=room)
    for n in range(BOTH - SLOWLY):
        found[f"both{n}"] = Peer.connect(port, user=f"both{n}", rooms="lab,hall")
    for n in range(SLOWLY):
        found[f"slow{n}"] = Slow.connect(port, user=f"slow{n}", rooms="lab,hall", buffer=4096)
    return found


def due(name: str, sender: str, count: int) -> list[tuple[str, int]]:
    """What a client should get of one sender: where it was sent, and its number."""
    rooms = {"lab": {"room:lab"}, "hall": {"room:hall"}}
    mine = rooms.get(name.rstrip("0123456789"), {"room:lab", "room:hall"}) | {f"user:{name}"}
    offset = SENDERS.index(sender)
    targets = [TARGETS[(n + offset) % len(TARGETS)] for n in range(count)]
    return [(target, n) for n, target in enumerate(targets) if target in mine]


def got(peer: Peer, sender: str) -> list[tuple[str, int]]:
    return [(data["to"], data["n"]) for data in peer.of("relay") if data["by"] == sender]


def test_each_receiver_gets_each_senders_messages_in_order_and_once(hub):
    """In bursts, by two rooms and directly, to quick and slow readers alike."""
    receivers = everybody(hub.port)
    senders = {name: Peer.connect(hub.port) for name in SENDERS}
    until(lambda: hub.ask("stats")["connections"] == len(receivers) + 2, "connecting")
    until(lambda: sum(n[0] == "join" for n in hub.notes) == 2 * ROOM, "joining")
    expected = {
        name: {sender: due(name, sender, 2 * BURST) for sender in SENDERS} for name in receivers
    }

    with Crowd([*receivers.values(), *senders.values()]) as crowd:
        for first in (0, BURST):
            for n in range(first, first + BURST):
                for offset, (name, peer) in enumerate(senders.items()):
                    data = {"by": name, "n": n, "to": TARGETS[(n + offset) % len(TARGETS)]}
                    peer.ask(str(n), "relay", {**data, "pad": "x" * PAD})
            crowd.until(lambda: all(peer.flush() for peer in senders.values()), "sending")
        crowd.until(
            lambda: all(
                len(peer.messages) >= sum(map(len, expected[name].values()))
                for name, peer in receivers.items()
            ),
            "receiving",
            within=60 * UNIT,
        )
        for name, peer in senders.items():
            crowd.until(lambda peer=peer: len(peer.messages) == 2 * BURST, "acks")
            assert set(peer.answers.values()) == {"ok"}, name
        crowd.pump(0.2)  # what came twice would come now

    for name, peer in receivers.items():
        assert not peer.torn
        assert len(peer.messages) == sum(map(len, expected[name].values())), name
        for sender in SENDERS:
            assert got(peer, sender) == expected[name][sender], name
    assert hub.ask("stats")["drops"] == 0
    assert hub.complaints == []


def test_the_members_of_a_room_see_one_order(hub):
    """Of one node, whoever sent: what differs between members would differ for ever."""
    members = [Peer.connect(hub.port, user=f"m{n}", rooms="lab") for n in range(ROOM)]
    senders = [Peer.connect(hub.port) for _ in range(4)]
    until(lambda: sum(n[0] == "join" for n in hub.notes) == ROOM, "joining")

    with Crowd([*members, *senders]) as crowd:
        for n in range(50):
            for by, peer in enumerate(senders):
                peer.ask(str(n), "relay", {"by": by, "n": n, "to": "room:lab"})
        crowd.until(lambda: all(len(p.messages) >= 200 for p in members), "receiving")

    first = members[0].of("relay")
    assert sorted((d["by"], d["n"]) for d in first) == [(b, n) for b in range(4) for n in range(50)]
    assert all(member.of("relay") == first for member in members)
