"""Of what can be brought about for ever, a few lines are written, and the others are counted."""

from eyewall.application.ports.logging import LINES, PERIOD, LogThrottle


def test_so_many_in_a_period_and_the_next_one_says_how_many_were_left_out():
    throttle = LogThrottle()

    assert [throttle.next(100.0) for _ in range(LINES)] == [{}] * LINES
    assert [throttle.next(100.0 + PERIOD / 2) for _ in range(3)] == [None] * 3
    assert throttle.next(100.0 + PERIOD) == {"left_out": 3}
    assert throttle.next(100.0 + PERIOD) == {}


def test_the_first_line_is_written_at_any_time():
    assert LogThrottle().next(0.0) == {}
