"""Pings and deadlines, with time moved by hand."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest

from eyewall.adapters.web.sockets.heartbeat import Heartbeat
from eyewall.application.concurrency.stalls import Stalls
from eyewall.domain.connection import HeartbeatConfig
from tests.adapters.web.support import Clock

TIMES = HeartbeatConfig(interval=30.0, pong_timeout=60.0, write_wait=10.0)


class FakeTarget:
    """A link that answers pings, if at all, at once."""

    def __init__(self, clock, *, answers=True, is_reading=True):
        self.clock = clock
        self.answers = answers
        self.is_reading = is_reading
        self.last_seen = clock.now()
        self.due_tick = 0
        self.last_ping = 0.0
        self.pong_deadline = 0.0
        self.writes = True
        self.unread = False
        """Whether its answer has come, and waits in the socket."""
        self.pings: list[float] = []
        self.silent: list[float] = []
        self.message_deadline = math.inf
        self.overdue: list[float] = []
        self.checks: list[float] = []
        self.deadline: float | None = None
        self.alive = True

    def read_pending(self):
        if self.unread:
            self.unread, self.last_seen = False, self.clock.now()

    def ping(self):
        if self.writes:
            self.pings.append(self.clock.now())
            self.last_ping = self.clock.now()
        if self.answers:
            self.last_seen = self.clock.now()
        return self.alive

    def on_pong_timeout(self):
        self.silent.append(self.clock.now())

    def on_message_timeout(self):
        self.overdue.append(self.clock.now())

    def check_deadlines(self, now):
        self.checks.append(now)
        return self.deadline is not None and now < self.deadline


def started(config=TIMES):
    clock = Clock(by_hand=True)
    stalls = Stalls(clock)
    stalls.start()
    heartbeat = Heartbeat(clock, config, stalls)
    heartbeat.start()
    return clock, heartbeat


def test_every_link_is_pinged_once_an_interval():
    clock, heartbeat = started()
    link = FakeTarget(clock)
    heartbeat.add(link)
    clock.advance(300)

    gaps = [b - a for a, b in pairwise(link.pings)]
    assert 15 <= link.pings[0] - 1000 <= 31
    assert all(29 <= gap <= 31 for gap in gaps)
    assert len(link.pings) in (9, 10)


def test_pings_of_links_that_came_at_once_are_spread_evenly():
    clock, heartbeat = started()
    links = [FakeTarget(clock) for _ in range(300)]
    for link in links:
        heartbeat.add(link)
    clock.advance(31)

    counts = Counter(link.pings[0] for link in links)
    assert len(counts) >= 15
    assert max(counts.values()) <= 25


def test_silence_is_noticed_at_its_time_and_not_before():
    clock, heartbeat = started()
    links = [FakeTarget(clock, answers=False) for _ in range(20)]
    for link in links:
        heartbeat.add(link)
    clock.advance(59)
    assert not any(link.silent for link in links)
    clock.advance(3)

    assert all(60 <= link.silent[0] - 1000 <= 62 for link in links)
    assert all(1 <= len(link.pings) <= 2 for link in links)


def test_any_sign_of_life_counts():
    clock, heartbeat = started()
    link = FakeTarget(clock, answers=False)
    heartbeat.add(link)
    for _ in range(10):
        clock.advance(50)
        link.last_seen = clock.now()

    assert link.silent == []


def test_a_pong_timeout_of_one_interval_ends_no_link_that_answers():
    clock, heartbeat = started(HeartbeatConfig(interval=10.0, pong_timeout=10.0))
    link = FakeTarget(clock)
    heartbeat.add(link)
    clock.advance(100)

    assert link.silent == []
    assert len(link.pings) >= 19


def test_the_silence_of_a_link_that_is_not_read_means_nothing():
    clock, heartbeat = started()
    link = FakeTarget(clock, answers=False, is_reading=False)
    heartbeat.add(link)
    clock.advance(300)
    assert (link.silent, link.pings) == ([], [])

    link.is_reading, link.last_seen = True, clock.now()
    clock.advance(40)
    assert link.pings


def test_a_deadline_is_checked_until_there_is_none():
    clock, heartbeat = started()
    link = FakeTarget(clock)
    link.deadline = clock.now() + 5
    heartbeat.watch_deadline(link)
    clock.advance(10)

    assert 5 <= link.checks[-1] - 1000 <= 7
    assert len(link.checks) <= 7


def test_a_link_that_was_removed_is_left_alone():
    clock, heartbeat = started()
    link, gone = FakeTarget(clock), FakeTarget(clock)
    heartbeat.add(link)
    heartbeat.watch_deadline(link)
    heartbeat.remove(link)
    gone.alive = False  # its ping finds out that the peer is gone
    heartbeat.add(gone)
    clock.advance(100)

    assert (link.pings, link.checks) == ([], [])
    assert len(gone.pings) == 1
    assert not any(heartbeat._wheel.values())


def test_the_timer_has_an_end_and_can_begin_again():
    clock, heartbeat = started()
    pending = clock.pending
    heartbeat.stop()
    assert clock.pending == pending - 1
    heartbeat.stop()
    heartbeat.start()
    link = FakeTarget(clock)
    heartbeat.add(link)
    clock.advance(31)
    assert link.pings


def test_a_message_that_is_overdue_ends_a_link_that_answers_every_ping():
    clock, heartbeat = started()
    link = FakeTarget(clock)
    heartbeat.add(link)
    clock.advance(100)
    link.message_deadline = clock.now() + 65
    clock.advance(300)

    (when,) = link.overdue
    assert 1165 <= when <= 1166.5
    assert link.silent == []
    assert max(link.pings) < when


def test_who_is_silent_in_the_middle_of_a_message_is_silent_in_the_first_place():
    clock, heartbeat = started()
    link = FakeTarget(clock, answers=False)
    link.message_deadline = clock.now() + 60
    heartbeat.add(link)
    clock.advance(300)

    assert len(link.silent) == 1
    assert link.overdue == []


def test_a_message_is_not_overdue_while_nobody_reads_it():
    clock, heartbeat = started()
    link = FakeTarget(clock, is_reading=False)
    link.message_deadline = clock.now() + 60
    heartbeat.add(link)
    clock.advance(300)

    assert link.overdue == []


# --- a loop that stands still


def test_silence_counts_only_from_a_ping_that_was_written():
    clock, heartbeat = started()
    link = FakeTarget(clock, answers=False)
    link.writes = False
    heartbeat.add(link)
    clock.advance(300)
    assert link.silent == []

    link.writes = True
    clock.advance(65)
    [when] = link.silent
    assert when - link.pings[0] >= TIMES.pong_timeout - TIMES.interval


def test_an_answer_that_waits_in_the_socket_is_read_before_the_peer_is_judged():
    clock, heartbeat = started()
    link = FakeTarget(clock, answers=False)
    heartbeat.add(link)
    clock.advance(45)
    link.unread = True
    clock.advance(40)
    assert (link.silent, link.unread) == ([], False)

    clock.advance(60)
    assert len(link.silent) == 1


@pytest.mark.parametrize("seconds", [45, 61, 3600])
def test_after_a_stall_the_peer_is_asked_and_has_its_time_to_answer(seconds):
    times = HeartbeatConfig(interval=15.0, pong_timeout=60.0)
    clock, heartbeat = started(times)
    links = [FakeTarget(clock) for _ in range(50)]
    gone = FakeTarget(clock, answers=False)
    for link in [*links, gone]:
        heartbeat.add(link)
    clock.advance(7)  # nobody was asked yet
    clock.stand_still(seconds)
    clock.advance(0)
    assert gone.silent == []
    clock.advance(200)

    assert not any(link.silent for link in links)
    [when] = gone.silent
    assert 60 - 15 <= when - gone.pings[0] <= 60 + 2


def test_pings_stay_spread_after_a_stall():
    clock, heartbeat = started()
    links = [FakeTarget(clock) for _ in range(300)]
    for link in links:
        heartbeat.add(link)
    clock.advance(31)
    clock.stand_still(100)
    clock.advance(2)
    assert all(len(link.pings) >= 2 for link in links)
    clock.advance(60)

    assert max(Counter(link.pings[-1] for link in links).values()) <= 25


def test_a_heartbeat_that_is_behind_catches_up_a_part_at_a_time():
    clock, heartbeat = started()
    links = [FakeTarget(clock) for _ in range(5000)]
    for link in links:
        heartbeat.add(link)
    clock.stand_still(100)
    clock.advance(0)
    assert sum(len(link.pings) for link in links) < 1500
    clock.advance(30)

    assert all(link.pings for link in links)


def test_a_link_that_ends_another_in_its_turn_leaves_nothing_of_it_behind():
    clock, heartbeat = started()

    class Deadly(FakeTarget):
        def ping(self):
            heartbeat.remove(others[self])
            return super().ping()

    one, two = Deadly(clock), Deadly(clock)
    others = {one: two, two: one}
    for link in (one, two):
        heartbeat.add(link)
        heartbeat.remove(link)
        heartbeat._schedule(link, clock.now() + 5)
    clock.advance(100)

    assert sorted(bool(link.pings) for link in (one, two)) == [False, True]
