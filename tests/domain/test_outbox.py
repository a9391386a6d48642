"""What waits for a stalled connection, and what is dropped."""

from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain.envelope import Priority
from eyewall.domain.outbox import DropPolicy, Offer, Outbox, QueueConfig
from eyewall.domain.pool import Pool

relaxed = settings(deadline=None)
LOW, NORMAL, HIGH = Priority


@dataclass(frozen=True, slots=True)
class Frame:
    name: object
    size: int = 1
    priority: Priority = NORMAL
    stream: str | None = None

    @property
    def body(self):
        return self


def outbox(policy=DropPolicy.DROP_NEWEST, size=100, max_bytes=10_000, pool=None):
    return Outbox(QueueConfig(size=size, max_bytes=max_bytes, drop_policy=policy), pool)


def filled(*frames, **how):
    box = outbox(**how)
    for frame in frames:
        assert box.offer(frame) == (Offer.QUEUED, ())
    return box


def names(frames):
    return [frame.name for frame in frames]


def everything(box):
    return names(box.take(10**9))


# --- the bounds


def test_the_bounds_have_the_documented_defaults():
    config = QueueConfig()

    assert (config.size, config.max_bytes) == (256, 8 * 1024 * 1024)
    assert config.drop_policy is DropPolicy.DROP_NEWEST


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": -1},
        {"size": 1.5},
        {"size": True},
        {"max_bytes": 0},
        {"max_bytes": None},
        {"drop_policy": "drop_everything"},
        {"drop_policy": None},
    ],
)
def test_nonsense_is_refused_where_it_is_written(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) + r"|DropPolicy"):
        QueueConfig(**wrong)


def test_a_policy_may_be_given_by_its_value():
    """Settings come from files, as texts."""
    assert QueueConfig(drop_policy="drop_oldest").drop_policy is DropPolicy.DROP_OLDEST


def test_the_bounds_do_not_change():
    with pytest.raises(FrozenInstanceError):
        QueueConfig().size = 3


def test_a_queue_knows_its_messages_and_bytes():
    box = filled(Frame("a", 3), Frame("b", 4, HIGH))
    assert (len(box), box.bytes) == (2, 7)

    box.take(4)

    assert (len(box), box.bytes) == (1, 3)


def test_a_queue_holds_exactly_size_messages():
    box = filled(Frame("a"), Frame("b", 1, HIGH), size=2)

    assert box.offer(Frame("c")) == (Offer.DROPPED_NEWEST, (Frame("c"),))


def test_a_queue_holds_exactly_max_bytes():
    box = filled(Frame("a", 6), Frame("b", 4), max_bytes=10)

    assert box.offer(Frame("c", 1)) == (Offer.DROPPED_NEWEST, (Frame("c", 1),))


def test_a_smaller_message_still_fits_where_a_larger_one_did_not():
    box = filled(Frame("a", 6), max_bytes=10)

    assert box.offer(Frame("large", 5))[0] is Offer.DROPPED_NEWEST
    assert box.offer(Frame("small", 4))[0] is Offer.QUEUED


def test_a_message_larger_than_the_bound_passes_when_nothing_else_waits():
    """It could never be sent otherwise."""
    box = outbox(max_bytes=10)

    assert box.offer(Frame("huge", 1000)) == (Offer.QUEUED, ())
    assert box.offer(Frame("tiny", 1))[0] is Offer.DROPPED_NEWEST


def test_a_message_larger_than_the_bound_does_not_pass_when_something_waits():
    box = filled(Frame("a", 1), max_bytes=10)

    assert box.offer(Frame("huge", 1000))[0] is Offer.DROPPED_NEWEST


# --- what gives way


def test_dropping_the_newest_keeps_what_waits():
    box = filled(Frame("a"), Frame("b"), size=2)

    assert box.offer(Frame("c", 1, HIGH)) == (Offer.DROPPED_NEWEST, (Frame("c", 1, HIGH),))
    assert everything(box) == ["a", "b"]


def test_overflowing_keeps_what_waits_and_hands_back_the_message():
    box = filled(Frame("a"), policy=DropPolicy.DROP_AND_DISCONNECT, size=1)

    assert box.offer(Frame("b")) == (Offer.OVERFLOWED, (Frame("b"),))
    assert everything(box) == ["a"]


def test_dropping_the_oldest_makes_room_for_the_newest():
    box = filled(Frame("a"), Frame("b"), policy=DropPolicy.DROP_OLDEST, size=2)

    outcome, lost = box.offer(Frame("c"))

    assert outcome is Offer.DROPPED_OLDEST
    assert names(lost) == ["a"]
    assert everything(box) == ["b", "c"]


def test_as_many_give_way_as_the_bytes_demand():
    box = filled(
        Frame("a", 4), Frame("b", 4), Frame("c", 2), policy=DropPolicy.DROP_OLDEST, max_bytes=10
    )

    outcome, lost = box.offer(Frame("d", 8))

    assert outcome is Offer.DROPPED_OLDEST
    assert names(lost) == ["a", "b"]
    assert everything(box) == ["c", "d"]


def test_the_lowest_priority_gives_way_first_then_the_oldest():
    frames = [Frame("high", 1, HIGH), Frame("old"), Frame("low", 1, LOW), Frame("new")]
    box = filled(*frames, policy=DropPolicy.DROP_OLDEST, size=4)

    assert names(box.offer(Frame("x"))[1]) == ["low"]
    assert names(box.offer(Frame("y"))[1]) == ["old"]
    assert everything(box) == ["high", "new", "x", "y"]


def test_a_higher_priority_never_gives_way_to_a_lower_one():
    box = filled(Frame("a"), Frame("b"), policy=DropPolicy.DROP_OLDEST, size=2)

    assert box.offer(Frame("c", 1, LOW)) == (Offer.DROPPED_NEWEST, (Frame("c", 1, LOW),))
    assert everything(box) == ["a", "b"]


def test_nothing_gives_way_in_vain():
    """If the lower ones alone can't make room, they are not lost for nothing."""
    box = filled(
        Frame("high", 8, HIGH), Frame("low", 2, LOW), policy=DropPolicy.DROP_OLDEST, max_bytes=10
    )

    assert box.offer(Frame("c", 5)) == (Offer.DROPPED_NEWEST, (Frame("c", 5),))
    assert everything(box) == ["high", "low"]


def test_all_of_its_priority_and_below_give_way_to_a_message_larger_than_the_bound():
    box = filled(Frame("a", 1, LOW), Frame("b", 9), policy=DropPolicy.DROP_OLDEST, max_bytes=10)

    outcome, lost = box.offer(Frame("huge", 1000))

    assert outcome is Offer.DROPPED_OLDEST
    assert names(lost) == ["a", "b"]
    assert everything(box) == ["huge"]


def test_a_message_larger_than_the_bound_does_not_push_out_a_higher_priority():
    box = filled(
        Frame("a", 1, LOW), Frame("b", 1, HIGH), policy=DropPolicy.DROP_OLDEST, max_bytes=10
    )

    assert box.offer(Frame("huge", 1000))[0] is Offer.DROPPED_NEWEST
    assert everything(box) == ["b", "a"]


# --- the order


def test_messages_leave_in_the_order_in_which_they_came():
    assert everything(filled(Frame("a"), Frame("b"), Frame("c"))) == ["a", "b", "c"]


def test_a_higher_priority_overtakes():
    box = filled(
        Frame("low", 1, LOW), Frame("a"), Frame("high", 1, HIGH), Frame("b"), Frame("h2", 1, HIGH)
    )

    assert everything(box) == ["high", "h2", "a", "b", "low"]


def test_a_message_of_a_room_with_history_never_overtakes_within_its_room():
    box = filled(Frame(1, 1, LOW, "r"), Frame("other"), Frame(2, 1, HIGH, "r"))

    assert everything(box) == ["other", 1, 2]


def test_a_message_of_a_room_with_history_is_never_overtaken_within_its_room():
    box = filled(Frame(1, 1, HIGH, "r"), Frame("other"), Frame(2, 1, LOW, "r"))

    assert everything(box) == [1, "other", 2]


def test_a_room_keeps_its_order_when_priorities_go_down_and_up_again():
    box = filled(Frame(1, 1, HIGH, "r"), Frame(2, 1, LOW, "r"), Frame(3, 1, NORMAL, "r"))

    assert everything(box) == [1, 2, 3]


def test_rooms_do_not_hold_back_each_other():
    box = filled(Frame("r1", 1, LOW, "r"), Frame("s1", 1, HIGH, "s"))

    assert everything(box) == ["s1", "r1"]


def test_a_room_is_held_back_only_while_its_earlier_message_waits():
    box = filled(Frame(1, 1, LOW, "r"), Frame("a", 1, LOW))
    assert names(box.take(1)) == [1]

    box.offer(Frame(2, 1, HIGH, "r"))

    assert everything(box) == [2, "a"]


def test_a_dropped_message_holds_back_its_room_no_longer():
    box = filled(
        Frame(1, 1, LOW, "r"), Frame("a"), Frame("b"), policy=DropPolicy.DROP_OLDEST, size=3
    )

    assert names(box.offer(Frame(2, 1, HIGH, "r"))[1]) == [1]
    assert everything(box) == [2, "a", "b"]


def test_a_cleared_queue_holds_back_nothing():
    box = filled(Frame(1, 1, LOW, "r"))
    box.clear()

    box.offer(Frame("a"))
    box.offer(Frame(2, 1, HIGH, "r"))

    assert everything(box) == [2, "a"]


def test_rooms_that_no_longer_wait_are_forgotten():
    """A connection may see any number of rooms come and go."""
    box = outbox()
    for room in range(50):
        box.offer(Frame("m", 1, NORMAL, str(room)))
        box.take(1)

    assert box._streams == {}


# --- taking


def test_a_take_stays_within_its_bytes():
    box = filled(Frame("a", 4), Frame("b", 4), Frame("c", 4))

    assert names(box.take(8)) == ["a", "b"]
    assert names(box.take(7)) == ["c"]
    assert box.take(7) == []


def test_a_take_makes_progress_however_large_the_first_message_is():
    box = filled(Frame("a", 100), Frame("b", 1))

    assert names(box.take(0)) == ["a"]
    assert names(box.take(10)) == ["b"]


def test_a_take_does_not_reach_past_a_message_that_does_not_fit():
    """A smaller one behind it, in its queue or below, would overtake it."""
    box = filled(Frame("a", 2), Frame("b", 9), Frame("c", 1), Frame("d", 1, LOW))

    assert names(box.take(5)) == ["a"]
    assert everything(box) == ["b", "c", "d"]


def test_clearing_hands_back_all_in_sending_order():
    box = filled(Frame("a", 2), Frame("b", 3, HIGH), Frame("c", 1, LOW))

    assert names(box.clear()) == ["b", "a", "c"]
    assert (len(box), box.bytes) == (0, 0)
    assert box.clear() == []


# --- whatever happens

sizes = st.integers(0, 6)
offers = st.builds(
    lambda size, priority, stream: ("offer", size, priority, stream),
    sizes,
    st.sampled_from(Priority),
    st.sampled_from([None, None, "r", "s"]),
)
takes = st.builds(lambda limit: ("take", limit), st.integers(0, 8))
steps = st.lists(st.one_of(offers, offers, takes), max_size=60)


def run(policy, script, size=4, max_bytes=10):
    """Play ``script``; return what was sent, what was lost, and every offered message."""
    box = outbox(policy, size, max_bytes)
    sent, lost, offered = [], [], []
    for step in script:
        if step[0] == "take":
            sent += box.take(step[1])
            continue
        frame = Frame(len(offered), *step[1:])
        offered.append(frame)
        waited = len(box)
        outcome, dropped = box.offer(frame)
        lost += dropped
        assert (outcome is Offer.QUEUED) == (not dropped)
        assert (frame in dropped) == (outcome in (Offer.DROPPED_NEWEST, Offer.OVERFLOWED))
        assert len(box) == waited + (frame not in dropped) - len([f for f in dropped if f != frame])
        assert len(box) <= size
        assert box.bytes <= max_bytes or len(box) == 1
    rest = box.take(10**9)
    assert (len(box), box.bytes, box._streams) == (0, 0, {})
    return sent + rest, lost, offered


@relaxed
@given(st.sampled_from(DropPolicy), steps)
def test_every_message_is_sent_once_or_handed_back_once(policy, script):
    sent, lost, offered = run(policy, script)

    assert sorted(names([*sent, *lost])) == names(offered)


@relaxed
@given(st.sampled_from(DropPolicy), steps)
def test_a_room_with_history_is_sent_in_order_whatever_the_priorities(policy, script):
    sent, _, _ = run(policy, script)

    for room in ("r", "s"):
        order = [frame.name for frame in sent if frame.stream == room]
        assert order == sorted(order)


@relaxed
@given(st.sampled_from(DropPolicy), steps)
def test_within_a_priority_messages_are_sent_in_order(policy, script):
    sent, _, _ = run(policy, script)

    for priority in Priority:
        order = [f.name for f in sent if f.priority is priority and f.stream is None]
        assert order == sorted(order)


@relaxed
@given(st.lists(offers, max_size=30))
def test_no_message_outside_rooms_is_pushed_out_by_a_lower_priority(script):
    box = outbox(DropPolicy.DROP_OLDEST, 4, 10)
    for number, step in enumerate(script):
        frame = Frame(number, *step[1:])
        outcome, dropped = box.offer(frame)
        if outcome is Offer.DROPPED_OLDEST:
            assert all(f.priority <= frame.priority for f in dropped if f.stream is None)


@relaxed
@given(st.lists(offers, max_size=20), st.integers(0, 12))
def test_taking_bit_by_bit_sends_the_same_as_taking_all(script, limit):
    whole, bits = outbox(), outbox()
    for number, step in enumerate(script):
        whole.offer(Frame(number, *step[1:]))
        bits.offer(Frame(number, *step[1:]))

    order = []
    while batch := bits.take(limit):
        assert len(batch) == 1 or sum(frame.size for frame in batch) <= limit
        order += batch

    assert order == whole.take(10**9)


# --- all queues of a node together


def test_a_message_is_held_from_when_it_is_taken_until_it_is_sent_or_dropped():
    pool = Pool(1000)
    box = outbox(DropPolicy.DROP_OLDEST, size=3, pool=pool)
    for n in range(4):
        box.offer(Frame(n, size=10))
    assert pool.bytes == 30

    box.take(10)
    assert pool.bytes == 20
    box.clear()
    assert pool.bytes == 0


def test_a_message_in_many_queues_is_held_once():
    pool = Pool(1000)
    boxes = [outbox(pool=pool) for _ in range(5)]
    frame = Frame("all", size=10)
    for box in boxes:
        box.offer(frame)

    assert pool.bytes == 10


def test_a_message_that_is_not_taken_is_not_held():
    pool = Pool(1000)
    box = outbox(size=1, pool=pool)
    box.offer(Frame("a", size=10))
    box.offer(Frame("b", size=10))

    assert pool.bytes == 10


SIX = [Frame(n, size=10, priority=p) for n, p in enumerate([LOW, LOW, NORMAL, NORMAL, HIGH, HIGH])]


@pytest.mark.parametrize(
    ("policy", "offer", "dropped", "kept"),
    [
        (DropPolicy.DROP_NEWEST, Offer.DROPPED_NEWEST, [1, 0, 3], [4, 5, 2]),
        (DropPolicy.DROP_OLDEST, Offer.DROPPED_OLDEST, [0, 1, 2], [4, 5, 3]),
        (DropPolicy.DROP_AND_DISCONNECT, Offer.OVERFLOWED, [4, 5, 2, 3, 0, 1], []),
    ],
)
def test_who_has_to_give_way_lets_go_of_half_by_its_policy(policy, offer, dropped, kept):
    """The lowest priority first; of one priority what the policy says."""
    pool = Pool(1000)
    box = filled(*SIX, policy=policy, pool=pool)

    told, lost = box.shed()

    assert (told, names(lost)) == (offer, dropped)
    assert pool.bytes == box.bytes == 10 * len(kept)
    assert everything(box) == kept


def test_giving_way_lets_go_of_one_message_at_least():
    box = filled(Frame("empty", size=0), Frame("also", size=0))

    assert names(box.shed()[1]) == ["also"]
    assert names(box.shed()[1]) == ["empty"]
    assert box.shed() == (Offer.DROPPED_NEWEST, [])


def test_what_was_let_go_of_leaves_the_order_of_its_room_intact():
    """A message behind it that could not overtake it may go its own way again."""
    box = filled(Frame("low", priority=LOW, stream="r"), Frame("high", priority=HIGH, stream="r"))
    box.shed()
    box.shed()
    box.offer(Frame("other"))
    box.offer(Frame("again", priority=HIGH, stream="r"))

    assert everything(box) == ["again", "other"]
