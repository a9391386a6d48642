"""Turns and batches, with socket pairs."""

from __future__ import annotations

import asyncio
import select
import socket

import pytest

from eyewall.adapters.web.sockets import poller as poller_module
from eyewall.adapters.web.sockets.poller import (
    READ,
    WRITE,
    EpollSource,
    LoopSource,
    Poller,
    best_source,
)
from tests.adapters.web.support import turns, until


class Load:
    """What the poller asks about."""

    def __init__(self) -> None:
        self.taken = 0
        self.is_paused = False
        self.batches: list[list[str]] = []
        self.open = False

    def before(self) -> None:
        self.batches.append([])
        self.open = True

    def after(self) -> None:
        self.open = False


class Peer:
    """Notes its events, each in the batch in which it came."""

    def __init__(self, load: Load, name: str = "peer", *, fails: bool = False) -> None:
        self.load = load
        self.name = name
        self.fails = fails
        self.errors: list[Exception] = []
        self.socket, self.other = socket.socketpair()
        self.socket.setblocking(False)
        self.again_from: Poller | None = None
        self.takes = 0
        """Messages that a turn brings."""

    @property
    def fd(self) -> int:
        return self.socket.fileno()

    def note(self, what: str) -> None:
        assert self.load.open
        self.load.batches[-1].append(f"{self.name} {what}")
        if self.fails:
            raise RuntimeError(self.name)

    def on_readable(self) -> None:
        try:
            data = self.socket.recv(1)
        except BlockingIOError:
            return  # an event is only a hint
        self.load.taken += 1
        self.note(f"read {data.decode()}".strip())

    def on_writable(self) -> None:
        self.note("writable")

    def on_rescheduled(self) -> None:
        self.load.taken += self.takes
        self.note("turn")
        if self.again_from is not None:
            self.again_from.reschedule(self)

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)

    def close(self) -> None:
        self.socket.close()
        self.other.close()


@pytest.fixture
def load():
    return Load()


@pytest.fixture(params=[EpollSource, LoopSource])
async def poller(request, load, peers):
    poller = Poller(
        request.param(),
        received_count=lambda: load.taken,
        budget=4,
        is_paused=lambda: load.is_paused,
        on_batch_start=load.before,
        on_batch_end=load.after,
    )
    poller.start()
    yield poller
    poller.stop()


@pytest.fixture
def peers(load):
    made = []

    def make(name="peer", **options):
        made.append(Peer(load, name, **options))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def events(load):
    return [event for batch in load.batches for event in batch]


def test_epoll_is_used_where_there_is_one(monkeypatch):
    assert type(best_source()) is EpollSource
    monkeypatch.delattr(select, "epoll")
    assert type(best_source()) is LoopSource


async def test_a_peer_hears_only_what_it_is_watched_for(poller, load, peers):
    peer = peers()
    peer.other.send(b"ab")
    poller.watch(peer.fd, peer, 0)
    await turns(20)
    assert events(load) == []
    poller.watch(peer.fd, peer, READ)
    await until(lambda: len(events(load)) == 2)
    poller.watch(peer.fd, peer, WRITE)
    await until(lambda: len(events(load)) >= 3)
    poller.unwatch(peer.fd)
    await turns()
    seen = events(load)
    await turns(20)

    assert seen == events(load)
    assert seen[:2] == ["peer read a", "peer read b"]
    assert set(seen[2:]) == {"peer writable"}


async def test_writable_comes_before_readable(poller, load, peers):
    peer = peers()
    peer.other.send(b"a")
    poller.watch(peer.fd, peer, READ | WRITE)
    await until(lambda: "peer read a" in events(load))

    assert events(load)[:2] == ["peer writable", "peer read a"]


async def test_one_peer_that_raises_does_not_stop_the_batch(poller, load, peers):
    bad, good = peers("bad", fails=True), peers("good")
    for peer in (bad, good):
        peer.other.send(b"a")
        poller.watch(peer.fd, peer, READ)
    await until(lambda: "good read a" in events(load))

    assert [str(error) for error in bad.errors] == ["bad"]
    bad.errors.clear()
    poller.reschedule(bad)
    poller.reschedule(good)
    await until(lambda: "good turn" in events(load))
    assert [str(error) for error in bad.errors] == ["bad"]


async def test_a_batch_ends_when_it_brought_enough_and_nobody_is_overtaken(poller, load, peers):
    """Ten peers are always ready; five fit into a batch. Each has its turn before
    any has its second."""
    ten = [peers(str(n)) for n in range(10)]
    for peer in ten:
        peer.other.send(b"x" * 50)
        poller.watch(peer.fd, peer, READ)
    await until(lambda: len(events(load)) >= 60)

    full = [batch for batch in load.batches if batch][:12]
    assert max(map(len, full)) == 5
    names = [event.split()[0] for batch in full for event in batch]
    for round_ in range(0, 60, 10):
        assert len(set(names[round_ : round_ + 10])) == 10


async def test_who_asks_for_another_turn_gets_one_in_each_batch(poller, load, peers):
    one, two = peers("one"), peers("two")
    one.again_from = two.again_from = poller
    poller.reschedule(one)
    poller.reschedule(two)
    poller.reschedule(one)
    await until(lambda: len(load.batches) >= 3)

    assert load.batches[:3] == [["one turn", "two turn"]] * 3
    poller.unschedule(one)
    poller.unschedule(two)
    count = len(load.batches)
    await turns()
    assert len(load.batches) <= count + 1


async def test_those_who_go_on_leave_half_of_a_batch_to_the_others(poller, load, peers):
    greedy = [peers(f"greedy{n}") for n in range(20)]
    for peer in greedy:
        peer.again_from, peer.takes = poller, 1
        poller.reschedule(peer)
    quiet = peers("quiet")
    quiet.other.send(b"a")
    poller.watch(quiet.fd, quiet, READ)
    await until(lambda: "quiet read a" in events(load))
    for peer in greedy:
        peer.again_from = None

    (batch,) = (batch for batch in load.batches if "quiet read a" in batch)
    assert load.batches.index(batch) < 3
    assert all(len(batch) <= 5 for batch in load.batches)
    turns_of = [event for batch in load.batches for event in batch if "turn" in event]
    assert len(set(turns_of[:20])) == min(20, len(turns_of))


async def test_while_held_nothing_is_read_and_nothing_is_forgotten(poller, load, peers):
    peer, waiting = peers("peer"), peers("waiting")
    load.is_paused = True
    peer.other.send(b"a")
    poller.watch(peer.fd, peer, READ)
    poller.reschedule(waiting)
    await turns(20)
    assert events(load) == []
    load.is_paused = False
    await until(lambda: len(events(load)) == 2)

    assert sorted(events(load)) == ["peer read a", "waiting turn"]


async def test_an_event_of_a_forgotten_descriptor_is_not_told(poller, load, peers):
    """The first peer ends the second in the same batch, whose event is there already."""
    one, two = peers("one"), peers("two")
    for peer, victim in ((one, two), (two, one)):
        peer.other.send(b"a")
        poller.watch(peer.fd, peer, READ)
        peer.on_readable = lambda peer=peer, victim=victim: (
            peer.note("read"),
            poller.unwatch(victim.fd),
        )
    await turns(20)

    assert len(set(events(load))) == 1


async def test_it_can_be_started_again(poller, load, peers):
    poller.stop()
    poller.start()
    peer = peers()
    peer.other.send(b"a")
    poller.watch(peer.fd, peer, READ)
    await until(lambda: events(load))
    assert events(load) == ["peer read a"]


async def test_at_most_a_batch_of_events_is_taken_at_once(poller, load, peers, monkeypatch):
    monkeypatch.setattr(poller_module, "EVENTS_PER_BATCH", 3)
    for n in range(7):
        peer = peers(str(n))
        peer.other.send(b"a")
        poller.watch(peer.fd, peer, READ)
    await until(lambda: len(events(load)) == 7)

    assert [len(batch) for batch in load.batches if batch] == [3, 3, 1]


async def test_it_leaves_nothing_in_the_loop(peers):
    load = Load()
    for source in (EpollSource(), LoopSource()):
        poller = Poller(
            source,
            received_count=lambda: 0,
            budget=1,
            is_paused=lambda: False,
            on_batch_start=load.before,
            on_batch_end=load.after,
        )
        poller.start()
        peer = peers()
        poller.watch(peer.fd, peer, READ | WRITE)
        poller.stop()
        loop = asyncio.get_running_loop()
        assert not loop.remove_reader(peer.fd)
        assert not loop.remove_writer(peer.fd)
