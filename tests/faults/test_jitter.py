"""A thousand clients, cut off again and again while messages flow.

With history every client ends with every message exactly once, in order. Without it what is
lost is what was published while a client was away, and what the server tells of.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.clients import Crowd, Peer
from tests.faults.jitter import Member
from tests.faults.jitter_rooms import Stay
from tests.faults.storm import Storm
from tests.faults.support import UNIT, WITHIN, HubProcess

CLIENTS = 1000
ROOMS = [f"room{n}" for n in range(20)]
BUSY = "busy"
"""The room of those who stall: so much is said there that their queues overflow."""
STALLING = 40
PUBLISHERS = 2
"""In each room with history: their messages cross."""

JITTER = 12 * UNIT
LIVES = 3 * UNIT
PACE = 0.4 * UNIT
"""Seconds between two messages of a publisher."""
BURST = 16
PADS = {True: 6000, False: 12_000}
"""Messages that the publishers of the busy room send at a time, and their bytes: more where
those who stall are cut off meanwhile, so that a queue is full before that, also where a busy
machine lets the publishers say less."""
QUEUE = 32
"""Messages that may wait for a client: fewer than what is said while one stalls."""
KEPT = 100_000
"""Messages that a room keeps: more than there will be."""
OPTIONS = {"client_commands": True, "session_ttl": WITHIN, "queue": {"size": QUEUE}}


def clients() -> int:
    """How many there are: 1,000, or fewer where descriptors are scarce."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # An abandoned connection is open beside the next one, and the servers may be late.
    return min(CLIENTS, (hard - 200) // 4)


@contextmanager
def jitter(hub: HubProcess, *, seed: int, publishers: int, fences: bool) -> Iterator[Storm]:
    """All clients in their rooms, some of them publishing and some of them stalling."""
    with Storm(hub.ports, seed, lives=LIVES, fences=fences) as storm:
        for n in range(clients() - STALLING - publishers):
            first, more = n % len(ROOMS), n // len(ROOMS) % (len(ROOMS) - 1) + 1
            storm.add(f"c{n}", [ROOMS[first], ROOMS[(first + more) % len(ROOMS)]])
        for n in range(publishers):
            storm.add(f"p{n}", [BUSY])
        for n in range(STALLING):
            storm.add(f"s{n}", [ROOMS[n % len(ROOMS)], BUSY], stalls=True)
        storm.until(
            lambda: all(member.live for member in storm.members),
            WITHIN,
            lambda: f"{sum(not m.live for m in storm.members)} are not in their rooms",
        )
        yield storm


def rage(storm: Storm, publishers: int) -> None:
    """Cut, stall and publish for a while; then let everybody come back."""
    storm.cutting = True
    for n, member in enumerate(storm.members):
        publishes = n < publishers * len(ROOMS) or member.name.startswith("p")
        # Without history the order of what is sent again after a cut is nobody's promise.
        if not (storm.fences and publishes):
            member.plan_cut()
        if member.stalls:
            storm.every(2.5 * UNIT, member.stall)
        elif BUSY in member.rooms:
            storm.every(
                PACE,
                lambda m=member: [
                    m.publish(BUSY, PADS[storm.fences]) for _ in range(BURST // publishers)
                ],
            )
    for n in range(publishers * len(ROOMS)):
        member = storm.members[n]
        room = next(iter(member.rooms))
        storm.every(PACE, lambda m=member, r=room: m.publish(r, 0))
    storm.run(JITTER)
    storm.cutting = False
    storm.until(
        lambda: all(settled(member) for member in storm.members),
        WITHIN,
        lambda: f"{[m.name for m in storm.members if not settled(m)][:9]} are not back",
    )


def settled(member: Member) -> bool:
    rooms = member.rooms.values()
    return member.live and not member.pending and not any(room.resuming for room in rooms)


def is_level(storm: Storm, member: Member) -> bool:
    return all(r.last == len(storm.published[r.name]) for r in member.rooms.values())


def summary(storm: Storm) -> str:
    sent = sum(map(len, storm.published.values()))
    connections = sum(member.connections for member in storm.members)
    return (
        f"{len(storm.members)} clients, {connections} connections, cuts {dict(storm.cuts)}, "
        f"{sent} messages, {storm.deliveries} came, {storm.gaps} gaps, "
        f"refused for now {dict(storm.refused)}"
    )


def test_with_history_every_client_ends_with_every_message_once_in_order(tmp_path):
    """On two nodes: a client comes back to one of them, and each keeps half the sessions."""
    like = {
        "options": OPTIONS,
        "nodes": 2,
        "rooms": [*ROOMS, BUSY],
        "history_size": KEPT,
    }
    with (
        HubProcess(tmp_path, app="jitter_app:server", **like) as hub,
        jitter(hub, seed=1, publishers=PUBLISHERS, fences=False) as storm,
    ):
        rage(storm, PUBLISHERS)
        storm.until(
            lambda: all(is_level(storm, member) for member in storm.members),
            WITHIN,
            lambda: f"{[m.name for m in storm.members if not is_level(storm, m)][:9]} miss some",
        )
        storm.run(0.3 * UNIT)  # what came twice would come now
        print(summary(storm))

        assert storm.lost == []
        assert not storm.ended
        assert len(storm.cuts) == 3
        assert storm.gaps > 0
        for room, published in storm.published.items():
            due = sorted(published, key=lambda one: one[0])
            assert [offset for offset, _ in due] == list(range(1, len(due) + 1)), room
            for member in storm.members:
                if room in member.rooms:
                    assert member.rooms[room].got == due, (member.name, room)
            sent = sorted((data["by"], data["n"]) for _, data in due)
            assert sent == sorted(set(sent)), room
        assert hub.complaints == []


def drops(hub: HubProcess) -> tuple[int, dict[tuple[str, str], set[int]]]:
    """What the server counted, and the numbers that its handlers were told of, by the
    connection and the room."""
    with Crowd([Peer.connect(hub.port, session=True)]) as crowd:
        peer = crowd.peers[0]
        peer.ask("1", "jitter:drops")
        crowd.until(lambda: peer.answers)
        answer = peer.messages[-1]["data"]
    found: dict[tuple[str, str], set[int]] = {}
    for error, room, data in answer["told"]:
        conn_id = error.removeprefix("the queue of ").removesuffix(" is full")
        numbers = found.setdefault((conn_id, room), set())
        assert data["n"] not in numbers
        numbers.add(data["n"])
    assert answer["counted"] == len(answer["told"]) + len(answer["others"])
    return answer["counted"], found


def check_stay(stay: Stay, dropped: set[int], total: int) -> None:
    """A connection brought all from its join to its end, but what was told as dropped."""
    got = stay.got
    assert got == sorted(set(got)), stay
    assert dropped.isdisjoint(got), stay
    assert not got or (stay.asked_at <= got[0] and got[-1] < total), stay
    due = set() if stay.since is None else set(range(stay.since, stay.fenced))
    between = set(range(got[0], got[-1])) if got else set()
    assert (due | between) - set(got) <= dropped, stay


def test_without_history_the_loss_is_counted_and_told(tmp_path):
    like = {"options": OPTIONS, "rooms": [*ROOMS, BUSY], "history_size": 0}
    with (
        HubProcess(tmp_path, app="jitter_app:server", **like) as hub,
        jitter(hub, seed=2, publishers=1, fences=True) as storm,
    ):
        rage(storm, 1)
        for member in storm.members:
            member.fence()
        storm.until(
            lambda: not any(member.fencing for member in storm.members),
            WITHIN,
            lambda: "no answer to the last fence",
        )
        counted, dropped = drops(hub)
        print(summary(storm), f"{counted} dropped")

        away = 0
        for member in storm.members:
            for room in member.rooms.values():
                total, last, came = storm.sent(room.name), -1, 0
                for stay in room.stays:
                    check_stay(stay, dropped.get((stay.conn_id, room.name), set()), total)
                    if stay.got:
                        assert stay.got[0] > last, "what came on an earlier connection came again"
                        last = stay.got[-1]
                    came += len(stay.got)
                away += total - came
        told = sum(map(len, dropped.values()))
        assert told > 0, "no queue was full"
        assert away > told, "nobody missed anything"
        assert not storm.ended
        assert hub.complaints == []
