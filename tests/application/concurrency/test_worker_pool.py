import asyncio
import contextlib
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.application.concurrency.worker_pool import MAX_JOBS_PER_TURN, LaneWorkers
from tests.application.fakes import finished, settle

WORD: ContextVar[str] = ContextVar("word")


class Shop:
    """Lanes whose jobs are (key, number), and suspend until a test lets them go on."""

    def __init__(self, *, workers=4, worker_queue=100, lane_queue=100, holding=()):
        self.begun = []
        self.done = []
        self.faults = []
        self.dropped = []
        self.overlaps = []
        self.gates = {job: asyncio.Event() for job in holding}
        self._in_work = set()
        self.lanes = LaneWorkers(
            self.handle,
            workers=workers,
            worker_queue=worker_queue,
            lane_queue=lane_queue,
            on_fault=self.faults.append,
            on_drop=self.dropped.append,
        )

    async def __aenter__(self):
        self.lanes.start()
        await settle()
        return self

    async def __aexit__(self, *_):
        await self.lanes.stop()

    async def handle(self, job):
        key = job[0]
        if key in self._in_work:
            self.overlaps.append(job)
        self._in_work.add(key)
        self.begun.append(job)
        try:
            if job in self.gates:
                await self.gates[job].wait()
        finally:
            self._in_work.discard(key)
        self.done.append(job)

    def submit(self, *jobs):
        return [self.lanes.submit(job[0], job) for job in jobs]

    def submit_for(self, owner, *jobs):
        return [self.lanes.submit(("key", job[0]), job, owner) for job in jobs]

    async def let_go(self, *jobs):
        for job in jobs:
            self.gates[job].set()
        await settle()

    def numbers_of(self, key):
        return [number for found, number in self.done if found == key]


# --- order


async def test_jobs_of_one_key_are_done_in_order():
    async with Shop() as shop:
        shop.submit(*[("a", n) for n in range(50)])
        await settle()

    assert shop.done == [("a", n) for n in range(50)]


async def test_two_jobs_of_one_key_never_overlap():
    async with Shop(holding=[("a", 0)]) as shop:
        shop.submit(("a", 0), ("a", 1))
        await settle()

        assert shop.begun == [("a", 0)]


async def test_a_job_that_waits_holds_up_only_its_own_lane():
    async with Shop(holding=[("a", 0), ("b", 0)]) as shop:
        shop.submit(("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", 0))
        await settle()

        assert shop.done == [("c", 0), ("d", 0)]


async def test_a_lane_goes_on_when_its_job_does():
    async with Shop(holding=[("a", 0)]) as shop:
        shop.submit(("a", 0), ("a", 1))
        await settle()
        shop.gates["a", 0].set()
        await settle()

        assert shop.done == [("a", 0), ("a", 1)]


async def test_with_every_worker_held_up_the_rest_waits():
    async with Shop(workers=2, holding=[("a", 0), ("b", 0)]) as shop:
        shop.submit(("a", 0), ("b", 0), ("c", 0))
        await settle()
        assert shop.done == []

        shop.gates["b", 0].set()
        await settle()
        assert shop.done == [("b", 0), ("c", 0)]


async def test_a_flooder_gives_way_after_a_few_jobs():
    """A lane with much to do goes to the end of the line, so that others get their turn."""
    async with Shop(workers=1) as shop:
        shop.submit(*[("flood", n) for n in range(MAX_JOBS_PER_TURN * 3)], ("b", 0))
        await settle()

    assert shop.done.index(("b", 0)) == MAX_JOBS_PER_TURN


class Step:
    """What the property tests do: submit a job, or let the oldest held one go on."""


KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), KEYS, st.booleans()),
        st.tuples(st.just("release"), st.integers(0, 5), st.none()),
        st.just(("turn", None, None)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 3), st.integers(1, 6), st.integers(1, 4))
def test_whatever_the_interleaving(steps, workers, worker_queue, lane_queue):
    """Order per key, no overlap, both bounds, and nothing that was taken is lost."""

    async def run():
        shop = Shop(workers=workers, worker_queue=worker_queue, lane_queue=lane_queue)
        taken = {key: [] for key in "abc"}
        async with shop:
            for number, (what, arg, hold) in enumerate(steps):
                if what == "submit":
                    job = (arg, number)
                    if hold:
                        shop.gates[job] = asyncio.Event()
                    waits = sum(map(len, taken.values())) - len(shop.begun)
                    in_lane = len(taken[arg]) - len([k for k, _ in shop.begun if k == arg])
                    fits = waits < worker_queue and in_lane < lane_queue
                    assert shop.submit(job) == [fits]
                    if fits:
                        taken[arg].append(number)
                elif what == "release":
                    held = [job for job in shop.begun if job in shop.gates]
                    if arg < len(held):
                        shop.gates[held[arg]].set()
                else:
                    await settle()
                assert shop.lanes.waiting == sum(map(len, taken.values())) - len(shop.begun)
            while any(not gate.is_set() for gate in shop.gates.values()):
                for gate in shop.gates.values():
                    gate.set()
            await shop.lanes.idle()

            assert shop.overlaps == []
            assert {key: shop.numbers_of(key) for key in "abc"} == taken
            assert shop.lanes.waiting == shop.lanes.running == 0
            assert not shop.lanes._lanes

    asyncio.run(run())


# --- bounds


async def test_what_waits_is_bounded_for_all_lanes_together():
    async with Shop(workers=1, worker_queue=2, holding=[("a", 0)]) as shop:
        shop.submit(("a", 0))
        await settle()

        assert shop.submit(("b", 0), ("c", 0), ("d", 0)) == [True, True, False]


async def test_what_waits_is_bounded_for_each_lane():
    """One flooder can't use up the whole queue."""
    async with Shop(lane_queue=2, holding=[("a", 0)]) as shop:
        shop.submit(("a", 0))
        await settle()

        assert shop.submit(("a", 1), ("a", 2), ("a", 3)) == [True, True, False]
        assert shop.submit(("b", 0)) == [True]


async def test_a_job_in_work_does_not_wait():
    async with Shop(worker_queue=1, lane_queue=1, holding=[("a", 0)]) as shop:
        shop.submit(("a", 0))
        await settle()

        assert shop.lanes.waiting == 0
        assert shop.submit(("a", 1)) == [True]


async def test_a_key_that_has_nothing_to_do_takes_no_memory():
    async with Shop() as shop:
        shop.submit(*[(n, 0) for n in range(50)])
        await settle()

        assert not shop.lanes._lanes
        assert not shop.lanes._ready


# --- shares


def held(owner, count):
    """So many jobs of one owner that do not end by themselves, each in a lane of its own."""
    return [(f"{owner}{n}", n) for n in range(count)]


async def test_an_owner_of_many_lanes_leaves_workers_to_the_others():
    """However many keys it names: whoever comes is served at once."""
    flood = held("flood", 20)
    async with Shop(workers=8, holding=flood) as shop:
        shop.submit_for("flood", *flood)
        await settle()
        assert len(shop.begun) == 6, "alone it gets all but the reserve"

        shop.submit(("ping", 0))
        shop.submit_for("other", ("key", 0))
        await settle()

        assert shop.done == [("ping", 0), ("key", 0)]
        for n in range(20):
            await shop.let_go(flood[n])
        assert sorted(shop.done[2:]) == sorted(flood), "and in the end it is served as well"
        assert not shop.lanes._shares


async def test_an_owner_below_its_share_finds_its_place_in_line():
    """It waits for no lane of an owner that is above its own."""
    flood = held("flood", 20)
    async with Shop(workers=8, holding=flood) as shop:
        shop.submit_for("flood", *flood)
        shop.submit_for("other", *[(f"o{n}", n) for n in range(3)])
        await settle()

        assert shop.done == [("o0", 0), ("o1", 1), ("o2", 2)]


async def test_two_owners_above_their_share_take_turns():
    one, two = held("one", 30), held("two", 30)
    async with Shop(workers=4, holding=[*one, *two]) as shop:
        shop.submit_for("one", *one)
        shop.submit_for("two", *two)
        await settle()
        before = len(shop.begun)
        for _ in range(20):
            await shop.let_go(next(job for job in shop.begun if job not in shop.done))

        since = [job[0][:3] for job in shop.begun[before:]]
        assert abs(since.count("one") - since.count("two")) <= 2


async def test_who_waits_behind_a_flooder_s_job_answers_for_it():
    """In a lane that both use the order holds, and the one who is below its share pays."""
    flood = [*held("flood", 20), ("common", 0)]
    async with Shop(workers=8, holding=flood) as shop:
        shop.submit_for("flood", *flood)
        await settle()
        assert ("common", 0) not in shop.begun

        shop.submit_for("other", ("common", 1))
        await settle()
        assert ("common", 0) in shop.begun
        await shop.let_go(("common", 0))

        assert shop.done == [("common", 0), ("common", 1)]


async def test_an_owner_of_many_lanes_leaves_room_in_the_queue():
    flood = held("flood", 200)
    async with Shop(workers=1, worker_queue=64, holding=flood[:1]) as shop:
        taken = shop.submit_for("flood", *flood)
        await settle()

        assert taken == [True] * 48 + [False] * 152
        assert all(shop.submit(("ping", 0)))
        assert all(shop.submit_for("other", ("key", 0))), "below its share"


async def test_an_owner_that_has_nothing_to_do_takes_no_memory():
    async with Shop(lane_queue=1, holding=[("a", 0)]) as shop:
        shop.submit_for("one", ("a", 0))
        await settle()
        shop.submit_for("one", ("a", 1))
        assert shop.submit_for("two", ("a", 2)) == [False]
        assert list(shop.lanes._shares) == ["one"]

        await shop.let_go(("a", 0))

        assert not shop.lanes._shares
        assert not shop.lanes._lanes


async def test_a_single_worker_serves_whoever_there_is():
    async with Shop(workers=1) as shop:
        shop.submit_for("one", *[(f"o{n}", n) for n in range(9)])
        await settle()

        assert len(shop.done) == 9


# --- owners that have gone


async def test_what_the_gone_have_in_work_holds_up_nobody():
    gone = held("gone", 4)
    async with Shop(workers=4, holding=gone) as shop:
        shop.submit(*gone)
        await settle()

        for key, _ in gone:
            shop.lanes.ended(key)
        shop.submit(("ping", 0))
        await settle()

        assert shop.done == [("ping", 0)]
        await shop.let_go(*gone)
        assert len(shop.done) == 5
        assert len(shop.lanes._workers) == 4, "those that came in their place have gone"


async def test_whoever_waits_is_served_as_soon_as_the_others_go():
    gone = held("gone", 2)
    async with Shop(workers=2, holding=gone) as shop:
        shop.submit(*gone, ("ping", 0))
        await settle()
        assert shop.done == []

        shop.lanes.ended("gone0")
        await settle()

        assert shop.done == [("ping", 0)]


async def test_there_are_at_most_as_many_again():
    """What the gone have in work is bounded too."""
    first, second, third = held("one", 2), held("two", 2), held("three", 2)
    async with Shop(workers=2, holding=[*first, *second, *third]) as shop:
        for jobs in (first, second, third):
            shop.submit(*jobs)
            await settle()
            for key, _ in jobs:
                shop.lanes.ended(key)
            await settle()

        assert shop.lanes.running == 4
        await shop.let_go(*first, *second, *third)
        assert len(shop.done) == 6
        assert len(shop.lanes._workers) == 2


async def test_what_the_gone_have_left_comes_last_and_in_order():
    async with Shop(workers=1, holding=[("work", 0)]) as shop:
        shop.submit(("work", 0))
        await settle()
        shop.submit(("gone", 0), ("gone", 1), ("here", 0), ("here", 1))

        shop.lanes.ended("gone")
        await shop.let_go(("work", 0))

        assert shop.done == [("work", 0), ("here", 0), ("here", 1), ("gone", 0), ("gone", 1)]


async def test_the_rest_of_a_lane_whose_owner_went_meanwhile_comes_last():
    async with Shop(workers=1, holding=[("gone", 0)]) as shop:
        shop.submit(("gone", 0), ("gone", 1))
        await settle()
        shop.submit(("here", 0), ("here", 1))
        shop.lanes.ended("gone")
        await shop.let_go(("gone", 0))

        assert sorted(shop.done[:3]) == [("gone", 0), ("here", 0), ("here", 1)]
        assert shop.done[3] == ("gone", 1)


async def test_lanes_of_keys_whose_owner_has_gone_come_last_until_somebody_joins_them():
    async with Shop(workers=1, holding=[("work", 0)]) as shop:
        shop.submit(("work", 0))
        await settle()
        shop.submit_for("gone", ("a", 0), ("b", 0))
        shop.submit_for("here", ("c", 0))
        shop.lanes.ended("gone")
        shop.submit_for("here", ("b", 1))
        await shop.let_go(("work", 0))

        assert shop.done[1:] == [("b", 0), ("c", 0), ("b", 1), ("a", 0)]


async def test_a_full_queue_gives_up_what_the_gone_have_left():
    async with Shop(workers=1, worker_queue=3, holding=[("work", 0)]) as shop:
        shop.submit(("work", 0))
        await settle()
        shop.submit(("gone", 0), ("gone", 1), ("here", 0))
        shop.lanes.ended("gone")

        assert shop.submit(("here", 1), ("here", 2), ("here", 3)) == [True, True, False]

        assert shop.dropped == [("gone", 1), ("gone", 0)], "the newest first"
        await shop.let_go(("work", 0))
        assert shop.numbers_of("here") == [0, 1, 2]
        assert not shop.lanes._lanes


async def test_the_end_of_somebody_who_has_nothing_to_do_changes_nothing():
    async with Shop(workers=1) as shop:
        shop.lanes.ended("nobody")
        shop.submit(("a", 0))
        await settle()

        assert shop.done == [("a", 0)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("own"), st.sampled_from("xyz"), st.booleans()),
            st.tuples(st.just("key"), st.sampled_from("xyz"), st.sampled_from("abc")),
            st.tuples(st.just("end"), st.sampled_from("xyz"), st.none()),
            st.tuples(st.just("release"), st.integers(0, 5), st.none()),
            st.just(("turn", None, None)),
        ),
        max_size=50,
    ),
    st.integers(1, 6),
    st.integers(2, 12),
)
def test_whatever_owners_do_nothing_is_lost_or_done_twice(steps, workers, worker_queue):
    """Order per key, no overlap, bounds, and everything taken is done or given up."""

    async def run():
        shop = Shop(workers=workers, worker_queue=worker_queue, lane_queue=4)
        taken, alive = [], {name: f"{name}0" for name in "xyz"}
        async with shop:
            for number, (what, who, arg) in enumerate(steps):
                if what in ("own", "key"):
                    job = (alive[who] if what == "own" else arg, number)
                    shop.gates[job] = asyncio.Event()
                    submit = shop.submit(job) if what == "own" else shop.submit_for(alive[who], job)
                    taken += [job] * submit[0]
                elif what == "end":
                    shop.lanes.ended(alive[who])
                    alive[who] = f"{who}{number + 1}"
                elif what == "release":
                    in_work = [j for j in shop.begun if not shop.gates[j].is_set()]
                    if who < len(in_work):
                        shop.gates[in_work[who]].set()
                else:
                    await settle()
                assert shop.lanes.waiting <= worker_queue
                assert shop.lanes.running <= 2 * workers
            while any(not gate.is_set() for gate in shop.gates.values()):
                for gate in shop.gates.values():
                    gate.set()
            await finished(shop.lanes.idle())
            await settle()

            assert shop.overlaps == []
            assert sorted(shop.done + shop.dropped) == sorted(taken)
            for key in {key for key, _ in taken}:
                assert shop.numbers_of(key) == sorted(shop.numbers_of(key))
            assert shop.lanes._lost == 0
            assert len(shop.lanes._workers) <= workers
            for rest in ("_lanes", "_shares", "_over", "_last"):
                assert not getattr(shop.lanes, rest)

    asyncio.run(run())


async def test_after_a_stop_nothing_is_left_of_shares():
    gone = held("gone", 8)
    shop = Shop(workers=4, holding=gone)
    shop.lanes.start()
    shop.submit_for("gone", *gone)
    await settle()
    shop.lanes.ended("gone")
    await settle()

    assert len(await shop.lanes.stop()) == 8 - len(shop.begun)

    async with shop:
        shop.submit(*[(key, number) for key, number in held("ping", 4)])
        await settle()
        assert len(shop.done) == 4
        assert not shop.lanes._shares
        assert not shop.lanes._over
        assert not shop.lanes._last


# --- faults


async def test_a_job_that_raises_ends_only_itself():
    async with Shop() as shop:

        async def handle(job):
            if job == 0:
                raise RuntimeError("no")
            shop.done.append(job)

        shop.lanes._handle = handle
        shop.lanes.submit("a", 0)
        shop.lanes.submit("a", 1)
        await settle()

    assert shop.done == [1]
    assert [str(fault) for fault in shop.faults] == ["no"]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_job_that_cancels_its_own_task_ends_only_itself(waits):
    """Also when it does not wait any more, and the next job would be hit."""
    async with Shop(workers=1) as shop:

        async def handle(job):
            if job < 3:
                asyncio.current_task().cancel()
            if waits or job == 3:
                await asyncio.sleep(0)
            shop.done.append(job)

        shop.lanes._handle = handle
        for job in range(4):
            shop.lanes.submit("a", job)
        shop.lanes.submit("b", 4)
        await settle()

        assert {job for job in shop.done if job >= 3} == {3, 4}
        assert shop.faults == []
        assert shop.lanes.waiting == shop.lanes.running == 0


async def test_a_worker_that_is_cancelled_while_it_rests_is_replaced():
    """A handler may have kept its task, and cancel it later."""
    async with Shop(workers=1) as shop:
        kept = []

        async def handle(job):
            kept.append(asyncio.current_task())
            shop.done.append(job)

        shop.lanes._handle = handle
        shop.lanes.submit("a", 0)
        await settle()
        kept[0].cancel()
        await settle()
        shop.lanes.submit("a", 1)
        await settle()

    assert shop.done == [0, 1]


async def test_a_worker_that_is_cancelled_while_it_is_woken_leaves_nobody_asleep():
    async with Shop(workers=2, holding=[("a", 0)]) as shop:
        shop.submit(("b", 0))
        await settle()
        shop.submit(("a", 0))
        await settle()
        resting = next(w for w in shop.lanes._workers if not _is_in_work(w))

        shop.gates["a", 0].set()
        shop.submit(("c", 0))
        resting.cancel()
        await settle()
        shop.submit(("d", 0))
        await settle()

        assert shop.done == [("b", 0), ("a", 0), ("c", 0), ("d", 0)]


def _is_in_work(worker):
    frames = [frame.f_code.co_name for frame in worker.get_stack()]
    coroutine = worker.get_coro()
    while coroutine is not None and hasattr(coroutine, "cr_await"):
        frames.append(coroutine.cr_code.co_name)
        coroutine = coroutine.cr_await
    return "handle" in frames


async def test_a_cancelled_future_in_a_job_is_a_fault_like_any_other():
    async with Shop(workers=1) as shop:

        async def handle(job):
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        shop.lanes._handle = handle
        shop.lanes.submit("a", 0)
        await settle()

    assert [type(fault) for fault in shop.faults] == [asyncio.CancelledError]


async def test_workers_don_t_outlive_the_loop():
    """A program that ends without stopping the lanes ends, whatever is in work."""

    async def program():
        shop = Shop(holding=[("a", 0)])
        shop.lanes.start()
        shop.submit(("a", 0))
        await settle()

    await asyncio.to_thread(asyncio.run, program())


# --- contexts


async def test_context_variables_of_one_job_are_not_seen_by_the_next():
    async with Shop(workers=1) as shop:

        async def handle(job):
            shop.done.append(WORD.get(None))
            WORD.set(f"secret of {job}")

        shop.lanes._handle = handle
        for job in range(MAX_JOBS_PER_TURN * 2):
            shop.lanes.submit("a", job)
        shop.lanes.submit("b", 0)
        await settle()

    assert shop.done == [None] * (MAX_JOBS_PER_TURN * 2 + 1)


async def test_jobs_begin_in_the_context_of_the_start():
    WORD.set("of the start")
    async with Shop(workers=1) as shop:

        async def handle(job):
            shop.done.append(WORD.get(None))

        shop.lanes._handle = handle
        WORD.set("of the submit")
        shop.lanes.submit("a", 0)
        await settle()

    assert shop.done == ["of the start"]


async def test_a_context_changed_in_each_job_costs_no_worker():
    async with Shop(workers=2) as shop:

        async def handle(job):
            WORD.set(str(job))
            shop.done.append(job)

        shop.lanes._handle = handle
        for job in range(20):
            shop.lanes.submit(job, job)
            await settle()

        assert shop.done == list(range(20))
        assert len(shop.lanes._workers) <= 2


async def test_a_job_has_a_task_of_its_own_time_outs_work():
    async with Shop() as shop:

        async def handle(job):
            try:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                shop.done.append(job)

        shop.lanes._handle = handle
        shop.lanes.submit("a", 0)
        shop.lanes.submit("a", 1)
        await shop.lanes.idle()

    assert shop.done == [0, 1]


# --- the end


async def test_idle_returns_when_nothing_waits_and_nothing_runs():
    async with Shop(workers=1, holding=[("a", 0)]) as shop:
        shop.submit(("a", 0), ("b", 0))
        idle = asyncio.ensure_future(shop.lanes.idle())
        await settle()
        assert not idle.done()

        shop.gates["a", 0].set()
        await settle()
        assert idle.done()


async def test_idle_with_nothing_to_do_returns_at_once():
    async with Shop() as shop:
        await shop.lanes.idle()


async def test_stop_cancels_what_runs_and_forgets_what_waits():
    shop = Shop(workers=1, holding=[("a", 0)])
    shop.lanes.start()
    shop.submit(("a", 0), ("a", 1))
    idle = asyncio.ensure_future(shop.lanes.idle())
    await settle()

    await shop.lanes.stop()
    await settle()

    assert shop.done == shop.faults == []
    assert shop.lanes.waiting == shop.lanes.running == 0
    assert idle.done()


async def test_after_a_stop_they_may_be_started_again():
    shop = Shop(workers=1, holding=[("a", 0)])
    shop.lanes.start()
    shop.submit(("a", 0), ("a", 1))
    await settle()
    await shop.lanes.stop()

    async with shop:
        shop.submit(("a", 2))
        await settle()

    assert shop.done == [("a", 2)]


async def test_stop_hands_back_what_nobody_saw_to():
    """What waits, and what goes on although it was cancelled: somebody has to answer."""
    held = asyncio.Event()

    async def deaf(_job):
        while not held.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await held.wait()

    lanes = LaneWorkers(deaf, workers=1, worker_queue=9, lane_queue=9, on_fault=print)
    lanes.start()
    for job in ("in work", "next"):
        lanes.submit("a", job)
    lanes.submit("b", "other")
    await settle()

    assert await lanes.stop() == ["in work", "next", "other"]
    held.set()
    await settle()
