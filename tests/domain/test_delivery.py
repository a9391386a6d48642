"""One message on its way to one connection."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain.delivery import (
    FINAL,
    NEXT,
    RETRIES,
    WHY,
    Delivery,
    Event,
    Plan,
    Send,
    Settle,
    State,
    WaitUntil,
)
from eyewall.domain.errors import Misuse
from eyewall.domain.report import FailureReason, SendOptions

relaxed = settings(deadline=None)
DELIVERED = Settle(delivered=True)


def failed(reason):
    return Settle(delivered=False, reason=reason)


def plan(ack_timeout=5.0, retry_max=2, retry_backoff=1.0, deadline=None):
    return Plan(ack_timeout, retry_max, retry_backoff, deadline)


def delivery(*events, **how):
    """A delivery to which ``events`` have happened, all at second 0."""
    made = Delivery(plan(**how))
    for event in events:
        made.on(event, 0.0)
    return made


def awaiting(**how):
    return delivery(Event.WRITTEN, **how)


def backing_off(**how):
    return delivery(Event.WRITTEN, Event.EXPIRED, **how)


# --- a test for each row


def test_it_begins_ready_for_the_first_try():
    made = delivery()

    assert (made.state, made.attempt) == (State.READY, 1)
    assert not made.is_settled


def test_a_written_message_waits_for_its_ack():
    made = delivery(ack_timeout=5.0)

    assert made.on(Event.WRITTEN, 10.0) == WaitUntil(15.0)
    assert made.state is State.AWAITING_ACK


def test_a_refused_message_backs_off():
    made = delivery(retry_backoff=0.5)

    assert made.on(Event.REFUSED, 10.0) == WaitUntil(10.5)
    assert made.state is State.BACKING_OFF


def test_a_connection_lost_before_the_message_was_sent_fails_it():
    made = delivery()

    assert made.on(Event.LOST, 0.0) == failed(FailureReason.CONN_CLOSED)
    assert made.state is State.FAILED


def test_an_ack_delivers():
    made = awaiting()

    assert made.on(Event.ACKED, 1.0) == DELIVERED
    assert made.state is State.DELIVERED
    assert made.is_settled


def test_a_nack_is_final():
    """Tries that are left are not used: the receiver has answered."""
    made = awaiting(retry_max=9)

    assert made.on(Event.NACKED, 1.0) == failed(FailureReason.NACKED)
    assert made.state is State.FAILED
    assert made.is_settled


def test_an_ack_that_does_not_come_backs_off():
    made = awaiting(retry_backoff=1.0)

    assert made.on(Event.EXPIRED, 5.0) == WaitUntil(6.0)
    assert made.state is State.BACKING_OFF


def test_a_connection_lost_while_its_ack_is_awaited_fails_at_once():
    made = awaiting(retry_max=9)

    assert made.on(Event.LOST, 1.0) == failed(FailureReason.CONN_CLOSED)
    assert made.state is State.FAILED


def test_a_pause_that_is_over_sends_again():
    made = backing_off()

    assert made.on(Event.DUE, 1.0) == Send(attempt=2)
    assert (made.state, made.attempt) == (State.READY, 2)


def test_a_late_ack_still_counts():
    made = backing_off()

    assert made.on(Event.ACKED, 0.5) == DELIVERED
    assert made.state is State.DELIVERED


def test_a_late_nack_is_an_answer_too():
    made = backing_off(retry_max=9)

    assert made.on(Event.NACKED, 0.5) == failed(FailureReason.NACKED)
    assert made.state is State.FAILED


def test_a_connection_lost_between_two_tries_fails_at_once():
    made = backing_off(retry_max=9)

    assert made.on(Event.LOST, 0.5) == failed(FailureReason.CONN_CLOSED)
    assert made.state is State.FAILED


# --- the holes


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_what_has_no_row_is_misuse_and_changes_nothing(state, event):
    made = delivery()
    made.state = state
    if (state, event) in NEXT:
        made.on(event, 0.0)
        return

    with pytest.raises(Misuse, match=f"{event.name} while {state.name}"):
        made.on(event, 0.0)

    assert (made.state, made.attempt) == (state, 1)


def test_the_holes_are_these():
    """A row more or less is a decision, and is made here too."""
    rows = {state: {event.name for s, event in NEXT if s is state} for state in State}

    assert rows == {
        State.READY: {"WRITTEN", "REFUSED", "LOST"},
        State.AWAITING_ACK: {"ACKED", "NACKED", "EXPIRED", "LOST"},
        State.BACKING_OFF: {"DUE", "ACKED", "NACKED", "LOST"},
        State.DELIVERED: set(),
        State.FAILED: set(),
    }


def test_no_row_leaves_a_final_state():
    assert not FINAL & {state for state, _ in NEXT}
    assert {State.DELIVERED, State.FAILED} == FINAL


def test_whatever_can_fail_has_a_reason():
    failing = {event for (_, event), after in NEXT.items() if after is State.FAILED}
    giving_up = {event for _, event in RETRIES} - {Event.DUE}

    assert failing | giving_up == set(WHY)


# --- tries


def test_each_pause_is_twice_the_one_before():
    made = delivery(retry_max=4, retry_backoff=0.5)
    pauses = []
    for _ in range(4):
        made.on(Event.WRITTEN, 0.0)
        pauses.append(made.on(Event.EXPIRED, 0.0).when)
        made.on(Event.DUE, 0.0)

    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_retry_max_counts_the_tries_after_the_first():
    made = delivery(Event.WRITTEN, Event.EXPIRED, Event.DUE, Event.WRITTEN, retry_max=1)

    assert made.attempt == 2
    assert made.on(Event.EXPIRED, 9.0) == failed(FailureReason.ACK_TIMEOUT)
    assert made.state is State.FAILED


def test_without_retries_an_ack_that_does_not_come_is_the_end():
    assert awaiting(retry_max=0).on(Event.EXPIRED, 5.0) == failed(FailureReason.ACK_TIMEOUT)


def test_without_retries_a_full_queue_is_the_end():
    assert delivery(retry_max=0).on(Event.REFUSED, 0.0) == failed(FailureReason.QUEUE_FULL)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([Event.WRITTEN, Event.EXPIRED], Event.REFUSED, FailureReason.QUEUE_FULL),
        ([Event.REFUSED], Event.LOST, FailureReason.CONN_CLOSED),
    ],
)
def test_it_fails_for_what_went_wrong_last(first, second, reason):
    made = delivery(*first, Event.DUE, retry_max=1)

    assert made.on(second, 9.0) == failed(reason)


def test_a_delivery_after_a_failed_try_has_no_reason():
    made = delivery(Event.REFUSED, Event.DUE, Event.WRITTEN)

    assert made.on(Event.ACKED, 2.0) == Settle(delivered=True, reason=None)


def test_any_number_of_retries_is_survived():
    """Doubling without end would overflow a float at about the thousandth try."""
    made = delivery(retry_max=3000, retry_backoff=0.05, deadline=1e12)
    for _ in range(3000):
        assert made.on(Event.REFUSED, 0.0).when <= 1e12
        made.on(Event.DUE, 0.0)

    assert made.on(Event.REFUSED, 0.0) == failed(FailureReason.QUEUE_FULL)


def test_no_pause_at_all_may_be_asked_for():
    made = delivery(retry_backoff=0.0)

    assert made.on(Event.REFUSED, 7.0) == WaitUntil(7.0)


# --- the deadline


def test_no_ack_is_awaited_past_the_deadline():
    assert delivery(ack_timeout=5.0, deadline=3.0).on(Event.WRITTEN, 0.0) == WaitUntil(3.0)


def test_no_pause_goes_past_the_deadline():
    assert awaiting(retry_backoff=9.0, deadline=8.0).on(Event.EXPIRED, 5.0) == WaitUntil(8.0)


def test_after_the_deadline_there_is_no_further_try():
    made = awaiting(retry_max=9, deadline=4.0)

    assert made.on(Event.EXPIRED, 4.0) == failed(FailureReason.TIMEOUT)


def test_after_the_deadline_a_full_queue_is_the_end():
    made = delivery(retry_max=9, deadline=4.0)

    assert made.on(Event.REFUSED, 4.0) == failed(FailureReason.TIMEOUT)


@pytest.mark.parametrize("events", [[Event.WRITTEN, Event.EXPIRED], [Event.REFUSED]])
def test_a_pause_that_ends_at_the_deadline_ends_it_all(events):
    """A message past its ttl is worthless: it is not sent once more."""
    made = delivery(*events, retry_backoff=9.0, deadline=4.0)

    assert made.on(Event.DUE, 4.0) == failed(FailureReason.TIMEOUT)
    assert made.state is State.FAILED
    assert made.attempt == 1


def test_an_ack_that_comes_after_the_deadline_but_is_heard_still_counts():
    assert awaiting(deadline=4.0).on(Event.ACKED, 4.5) == DELIVERED


# --- the plan


def test_a_plan_is_made_from_what_the_caller_asked_for():
    options = SendOptions(ack_timeout=2, retry_max=3, retry_backoff=0.1, ttl=60)

    assert Plan.of(options, now=100.0) == Plan(
        ack_timeout=2.0, retry_max=3, retry_backoff=0.1, deadline=160.0
    )


def test_a_plan_without_a_ttl_has_no_deadline():
    assert Plan.of(SendOptions(), now=100.0).deadline is None


# --- whatever happens

plans = st.builds(
    Plan,
    ack_timeout=st.floats(0.01, 60.0),
    retry_max=st.integers(0, 6),
    retry_backoff=st.floats(0.0, 10.0),
    deadline=st.none() | st.floats(0.0, 100.0),
)


@relaxed
@given(plans, st.data())
def test_whatever_happens_it_settles_once_in_time_and_within_its_tries(asked, data):
    made, now, sends = Delivery(asked), 0.0, 1
    action = None
    while not isinstance(action, Settle):
        event = data.draw(st.sampled_from([e for s, e in NEXT if s is made.state]))
        if isinstance(action, WaitUntil) and event in (Event.EXPIRED, Event.DUE):
            now = max(now, action.when)
        else:
            now += data.draw(st.floats(0.0, 1.0))
        action = made.on(event, now)
        if isinstance(action, WaitUntil) and asked.deadline is not None:
            assert action.when <= asked.deadline
        if isinstance(action, Send):
            sends += 1
            assert action.attempt == made.attempt == sends
            assert asked.deadline is None or now < asked.deadline
        assert made.is_settled == isinstance(action, Settle)

    assert made.attempt == sends <= asked.retry_max + 1
    assert action.delivered == (event is Event.ACKED)
    assert (action.reason is None) == action.delivered
    for event in Event:
        with pytest.raises(Misuse):
            made.on(event, now)


@relaxed
@given(plans)
def test_a_silent_receiver_gets_every_try_that_the_time_allows(asked):
    made, now = Delivery(asked), 0.0
    while True:
        now = max(now, made.on(Event.WRITTEN, now).when)
        action = made.on(Event.EXPIRED, now)
        if isinstance(action, Settle):
            break
        now = max(now, action.when)
        if isinstance(made.on(Event.DUE, now), Settle):
            break

    assert made.attempt == asked.retry_max + 1 or (
        asked.deadline is not None and now >= asked.deadline
    )
