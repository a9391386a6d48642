import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eyewall.application.concurrency.timers import SLACK, TimerQueue
from tests.application.fakes import FakeClock


class AgainstAModel(RuleBasedStateMachine):
    """Each deadline runs once, when it is due and not before, the earliest first."""

    @initialize()
    def begin(self):
        self.clock = FakeClock()
        self.deadlines = TimerQueue(self.clock)
        self.ran = []
        self.expected = []
        self.waiting = {}  # number -> (when, deadline)
        self.count = 0

    @rule(delay=st.integers(0, 20))
    def add(self, delay):
        number, self.count = self.count, self.count + 1
        when = self.clock.now() + delay
        self.waiting[number] = (when, self.deadlines.at(when, lambda: self.ran.append(number)))

    @rule(pick=st.integers(0, 100))
    def cancel(self, pick):
        if self.waiting:
            number = sorted(self.waiting)[pick % len(self.waiting)]
            self.waiting.pop(number)[1].cancel()

    @rule(seconds=st.integers(0, 10))
    def wait(self, seconds):
        self.clock.pass_time(seconds)
        due = [n for n, (when, _) in self.waiting.items() if when <= self.clock.now()]
        # Those of one moment run in the order in which they came.
        due.sort(key=lambda n: (self.waiting[n][0], n))
        self.expected += due
        for number in due:
            self.waiting.pop(number)[1].cancel()  # too late: it changes nothing

    @invariant()
    def ran_what_was_due(self):
        if hasattr(self, "ran"):
            assert self.ran == self.expected
            assert len(self.deadlines) == len(self.waiting)

    @invariant()
    def has_one_timer(self):
        if hasattr(self, "clock"):
            assert len(self.clock.timers) <= 1
            assert not self.waiting or self.clock.timers


AgainstAModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAgainstAModel = AgainstAModel.TestCase


@pytest.fixture
def deadlines(clock):
    return TimerQueue(clock)


def test_many_deadlines_share_one_timer(clock, deadlines):
    for n in range(1000):
        deadlines.at(clock.now() + 1000 - n, lambda: None)

    assert len(clock.timers) == 1


def test_what_is_cancelled_does_not_run(clock, deadlines):
    ran = []
    deadline = deadlines.at(clock.now() + 1, lambda: ran.append(1))

    deadline.cancel()
    clock.pass_time(2)

    assert deadline.cancelled
    assert ran == []


def test_cancelling_twice_counts_once(clock, deadlines):
    deadline = deadlines.at(clock.now() + 1, lambda: None)
    deadlines.at(clock.now() + 1, lambda: None)

    deadline.cancel()
    deadline.cancel()

    assert len(deadlines) == 1


def test_cancelled_ones_don_t_pile_up(clock, deadlines):
    """An ack that comes at once cancels its deadline long before that is due."""
    for _ in range(100 * SLACK):
        deadlines.at(clock.now() + 1000, lambda: None).cancel()

    assert len(deadlines._heap) <= 2 * SLACK + 1


def test_a_deadline_that_has_passed_runs_without_delay(clock, deadlines):
    ran = []
    deadlines.at(clock.now() - 5, lambda: ran.append(1))

    clock.pass_time(0)

    assert ran == [1]


def test_one_may_add_another_while_it_runs(clock, deadlines):
    ran = []
    deadlines.at(
        clock.now() + 1, lambda: deadlines.at(clock.now() + 1, lambda: ran.append(clock.now()))
    )

    clock.pass_time(5)

    assert ran == [1002.0]


def test_one_that_raises_does_not_stop_the_others(clock, deadlines):
    ran = []

    def fail():
        raise RuntimeError

    deadlines.at(clock.now() + 1, fail)
    deadlines.at(clock.now() + 1, lambda: ran.append(1))
    with pytest.raises(RuntimeError):
        clock.pass_time(1)
    clock.pass_time(1)

    assert ran == [1]


def test_after_close_nothing_runs_and_no_timer_is_left(clock, deadlines):
    ran = []
    deadlines.at(clock.now() + 1, lambda: ran.append(1))

    deadlines.close()
    clock.pass_time(2)

    assert ran == []
    assert not clock.timers


def test_cancelling_after_close_changes_nothing(clock, deadlines):
    deadline = deadlines.at(clock.now() + 1, lambda: None)
    deadlines.close()

    deadline.cancel()

    assert len(deadlines) == 0
