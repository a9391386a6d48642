"""The promises of a ``HistoryStore`` as tests, for authors of a store.

Derive a class, return a client of your engine and a function that lets messages age from its
fixtures, and run pytest::

    from eyewall.testing.contracts import HistoryContract

    class TestMyHistory(HistoryContract):
        @pytest.fixture
        def connect(self):
            return lambda: MyHistory("my://localhost")

        @pytest.fixture
        def grow_old(self):
            return asyncio.sleep        # or move the engine's clock

``connect()`` returns a new client that is not open yet. All clients of a test see the same history,
which is empty at the beginning. ``connect`` is called in several threads, each with an event loop
of its own. The tests open and close a client that has ``open`` and ``close``.
``grow_old(seconds)`` returns when messages are that much older, and the test's ``now()`` moves with
it. The tests let messages reach the age ``ttl``. They are ``async`` and need pytest-asyncio with
``asyncio_mode = auto``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eyewall.application.ports.stores import HistoryStore
from eyewall.domain.envelope import Priority
from eyewall.domain.history import MAX_EPOCH, Entry, Page, Position, Retention
from eyewall.testing.contracts.bus import Connect, opened

GrowOld = Callable[[float], Awaitable[Any]]

KEEPS = Retention(100)


def entry(number: int) -> Entry:
    return Entry(b'{"topic":"t","data":%d}' % number)


def numbers(page: Page) -> list[int]:
    """Return the numbers that the entries of a page were made with."""
    return [int(e.payload.rpartition(b":")[2][:-1]) for e in page.entries]


class HistoryContract:
    """The promises of ``HistoryStore``, one test per promise."""

    ttl = 1.0

    @pytest.fixture
    def connect(self) -> Connect:
        raise NotImplementedError("return a function that makes a client of your engine")

    @pytest.fixture
    def grow_old(self) -> GrowOld:
        """Return a function that lets messages age. The default is for engines that use ``now``."""

        async def nothing(seconds: float) -> None:
            self.moved += timedelta(seconds=seconds)

        return nothing

    moved = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.moved

    @pytest.fixture
    async def history(self, connect: Connect) -> AsyncIterator[HistoryStore]:
        async with opened(connect()) as store:
            yield store

    async def fill(
        self, store: HistoryStore, count: int, room: str = "lab", keeps: Retention = KEEPS
    ) -> list[Position]:
        return [
            await store.append(room, entry(n), keeps, self.now())  # type: ignore[arg-type]
            for n in range(1, count + 1)
        ]

    async def read(
        self,
        store: HistoryStore,
        since: Position | None = None,
        limit: int = 100,
        room: str = "lab",
    ) -> Page:
        return await store.read(room, since, limit, self.now())  # type: ignore[arg-type]

    # --- positions

    async def test_offsets_are_one_more_for_each_message(self, history: Any) -> None:
        positions = await self.fill(history, 3)

        assert [p.offset for p in positions] == [1, 2, 3]
        assert len({p.epoch for p in positions}) == 1
        assert await history.position("lab") == positions[-1]

    async def test_a_room_that_was_never_heard_of_stands_at_0_of_an_epoch(
        self, history: Any
    ) -> None:
        first = await history.position("lab")

        assert first.offset == 0
        assert 0 < len(first.epoch) <= MAX_EPOCH
        assert await history.position("lab") == first, "the epoch stays"
        assert (await self.fill(history, 1))[0] == Position(first.epoch, 1)

    async def test_reading_a_room_that_was_never_heard_of_begins_its_epoch_too(
        self, history: Any
    ) -> None:
        page = await self.read(history)

        assert (numbers(page), page.position.offset, page.recovered) == ([], 0, True)
        assert await history.position("lab") == page.position

    async def test_rooms_have_histories_of_their_own(self, history: Any) -> None:
        await self.fill(history, 2, room="lab")
        await self.fill(history, 1, room="den")

        assert numbers(await self.read(history, room="lab")) == [1, 2]
        assert numbers(await self.read(history, room="den")) == [1]
        assert (await history.position("lab")).epoch != (await history.position("den")).epoch

    # --- reading

    async def test_without_a_position_the_newest_come_oldest_first(self, history: Any) -> None:
        await self.fill(history, 5)

        page = await self.read(history, limit=2)

        assert (numbers(page), page.first, page.position.offset) == ([4, 5], 4, 5)
        assert page.recovered

    async def test_after_a_position_the_first_come(self, history: Any) -> None:
        at = await self.fill(history, 5)

        page = await self.read(history, at[1], limit=2)

        assert (numbers(page), page.first, page.position.offset) == ([3, 4], 3, 5)
        assert page.recovered

    async def test_from_the_beginning_of_the_epoch_everything_comes(self, history: Any) -> None:
        at = await self.fill(history, 3)

        page = await self.read(history, Position(at[0].epoch, 0))

        assert (numbers(page), page.recovered) == ([1, 2, 3], True)

    async def test_after_the_last_there_is_nothing_and_nothing_is_missing(
        self, history: Any
    ) -> None:
        at = await self.fill(history, 2)

        page = await self.read(history, at[-1])

        assert (numbers(page), page.first, page.position) == ([], 3, at[-1])
        assert page.recovered

    async def test_entries_come_back_as_they_were_appended(self, history: Any) -> None:
        one = Entry(b'{"topic":"t","data":"\xc3\xa9 \\u0000"}', Priority.HIGH, ["c1", "c2"])
        await history.append("lab", one, KEEPS, self.now())

        (found,) = (await self.read(history)).entries

        assert (found.payload, found.priority, list(found.skip)) == (
            one.payload,
            Priority.HIGH,
            ["c1", "c2"],
        )

    # --- messages that are gone

    async def test_a_position_of_another_epoch_is_not_recovered(self, history: Any) -> None:
        await self.fill(history, 2)

        page = await self.read(history, Position("another", 1))

        assert (numbers(page), page.recovered) == ([], False)
        assert page.position == await history.position("lab")

    async def test_a_position_that_was_never_reached_is_not_recovered(self, history: Any) -> None:
        at = await self.fill(history, 2)

        page = await self.read(history, Position(at[0].epoch, 3))

        assert (numbers(page), page.recovered, page.position) == ([], False, at[-1])

    async def test_the_oldest_go_when_there_are_too_many(self, history: Any) -> None:
        at = await self.fill(history, 5, keeps=Retention(2))

        trimmed, edge = await self.read(history, at[1]), await self.read(history, at[2])

        assert (numbers(trimmed), trimmed.first, trimmed.recovered) == ([4, 5], 4, False)
        assert (numbers(edge), edge.first, edge.recovered) == ([4, 5], 4, True)

    async def test_a_smaller_size_holds_from_the_next_message_on(self, history: Any) -> None:
        await self.fill(history, 3)

        await history.append("lab", entry(4), Retention(2), self.now())

        assert numbers(await self.read(history)) == [3, 4]

    async def test_the_old_go_when_their_time_is_over(
        self, history: Any, grow_old: GrowOld
    ) -> None:
        keeps = Retention(100, self.ttl)
        at = await self.fill(history, 2, keeps=keeps)
        await grow_old(self.ttl + 0.1)

        page = await self.read(history, at[0])

        assert (numbers(page), page.recovered, page.position) == ([], False, at[1])
        assert (await self.read(history, at[1])).recovered, "nothing after it is missing"
        assert await history.append("lab", entry(3), keeps, self.now()) == Position(at[0].epoch, 3)
        assert numbers(await self.read(history)) == [3]

    @pytest.mark.parametrize("longer", [None, 3600.0], ids=["for ever", "an hour"])
    async def test_what_has_expired_does_not_come_back_with_another_ttl(
        self, history: Any, grow_old: GrowOld, longer: float | None
    ) -> None:
        """Also if no client has read the room in between."""
        (at,) = await self.fill(history, 1, keeps=Retention(100, self.ttl))
        await grow_old(self.ttl + 0.1)

        await history.append("lab", entry(2), Retention(100, longer), self.now())

        page = await self.read(history, Position(at.epoch, 0))
        assert (numbers(page), page.first, page.recovered) == ([2], 2, False)

    async def test_what_is_not_too_old_yet_lives_by_the_newest_word(
        self, history: Any, grow_old: GrowOld
    ) -> None:
        (at,) = await self.fill(history, 1, keeps=Retention(100, self.ttl))
        await history.append("lab", entry(2), Retention(100, None), self.now())
        await grow_old(self.ttl + 0.1)

        page = await self.read(history, Position(at.epoch, 0))

        assert (numbers(page), page.recovered) == ([1, 2], True)

    async def test_a_room_that_was_removed_begins_a_new_epoch(self, history: Any) -> None:
        at = await self.fill(history, 2)

        await history.remove("lab")

        page = await self.read(history, at[0])
        assert (numbers(page), page.recovered) == ([], False)
        assert (page.position.offset, page.position.epoch == at[0].epoch) == (0, False)

    async def test_removing_a_room_that_is_not_there_is_no_error(self, history: Any) -> None:
        await history.remove("nowhere")

    # --- several clients

    async def test_all_clients_see_the_same(self, connect: Connect) -> None:
        async with opened(connect()) as one, opened(connect()) as two:
            (at,) = await self.fill(one, 1)

            assert await two.position("lab") == at
            assert numbers(await self.read(two)) == [1]

    async def test_no_offset_is_given_twice_however_many_append_at_once(
        self, connect: Connect
    ) -> None:
        """Each client in a thread with a loop of its own, like several servers."""

        def publisher(start: int) -> list[tuple[int, int]]:
            async def work() -> list[tuple[int, int]]:
                async with opened(connect()) as store:
                    found = []
                    for n in range(start, start + 25):
                        at = await store.append("lab", entry(n), KEEPS, self.now())
                        found.append((at.offset, n))
                    return found

            return asyncio.run(work())

        with ThreadPoolExecutor(4) as pool:
            starts = [1, 101, 201, 301]
            parts = await asyncio.gather(
                *(asyncio.get_running_loop().run_in_executor(pool, publisher, s) for s in starts)
            )
        numbered = dict(pair for part in parts for pair in part)

        assert sorted(numbered) == list(range(1, 101))
        async with opened(connect()) as store:
            assert numbers(await self.read(store)) == [numbered[n] for n in range(1, 101)]
