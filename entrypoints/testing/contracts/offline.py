"""The promises of an ``OfflineStore`` as tests, for authors of a store.

Derive a class, return a client of your store from its fixture, and run pytest::

    from eyewall.testing.contracts import OfflineContract

    class TestMyStore(OfflineContract):
        @pytest.fixture
        def connect(self, clock):
            return lambda **limits: MyOffline("my://localhost", clock=clock, **limits)

``connect(**limits)`` returns a new client that is not open yet. All clients of a test share the
stored messages. ``limits`` are ``max_messages``, ``max_bytes`` and ``max_age``. Claims expire by
``clock``, a function that returns seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eyewall.application.ports.stores import OfflineStore
from eyewall.domain.envelope import Priority
from eyewall.domain.identity import UserId
from eyewall.domain.mailbox import StoredMessage
from eyewall.domain.report import FailureReason
from eyewall.testing.contracts.bus import opened

ADA, BOB = UserId("ada"), UserId("bob:ü'; --")
START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


class SettableClock:
    """A clock in seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def message(
    message_id: str,
    *,
    size: int = 10,
    after: float = 0.0,
    ttl: float | None = None,
    priority: Priority = Priority.NORMAL,
) -> StoredMessage:
    """Return a message that was stored ``after`` seconds after ``START``."""
    stored_at = START + timedelta(seconds=after)
    expires_at = None if ttl is None else stored_at + timedelta(seconds=ttl)
    return StoredMessage(message_id, b"x" * size, priority, stored_at, expires_at)


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


async def ids(store: OfflineStore, user: UserId = ADA, now: datetime = START) -> list[str]:
    """Return the ids of the waiting messages, in order."""
    return [kept.id for _, kept in await store.waiting(user, 0, 10_000, now)]


class OfflineContract:
    """The promises of ``OfflineStore``, one test per promise."""

    @pytest.fixture
    def clock(self) -> SettableClock:
        return SettableClock()

    @pytest.fixture
    def connect(self) -> Callable[..., Any]:
        """Return a function that makes a client of the store, not open yet. To be overridden."""
        raise NotImplementedError("return a function that makes a client of your store")

    @pytest.fixture
    async def store(self, connect: Callable[..., Any]) -> AsyncIterator[OfflineStore]:
        async with opened(connect()) as client:
            yield client

    # --- stored messages

    async def test_a_message_comes_back_as_it_was(self, store: Any) -> None:
        kept = [
            message("1", ttl=60.5, priority=Priority.HIGH),
            StoredMessage("2", bytes(range(256)), Priority.LOW, START),
            message("ü€😀", size=1 << 20),
        ]

        for one in kept:
            assert await store.store(ADA, one) == []

        assert [found for _, found in await store.waiting(ADA, 0, 10, START)] == kept

    async def test_messages_come_in_the_order_in_which_they_were_stored(self, store: Any) -> None:
        sent = [f"m{number}" for number in range(100)]
        for message_id in sent:
            await store.store(ADA, message(message_id))

        assert await ids(store) == sent

    async def test_everybody_has_their_own(self, store: Any) -> None:
        await store.store(ADA, message("1"))
        await store.store(BOB, message("1", size=11))

        assert [len(m.payload) for _, m in await store.waiting(ADA, 0, 10, START)] == [10]
        assert [len(m.payload) for _, m in await store.waiting(BOB, 0, 10, START)] == [11]
        assert await ids(store, UserId("nobody")) == []

    async def test_the_same_id_again_replaces_nothing(self, store: Any) -> None:
        await store.store(ADA, message("1", size=10))
        await store.store(ADA, message("2"))

        assert await store.store(ADA, message("1", size=20)) == []

        found = await store.waiting(ADA, 0, 10, START)
        assert [(m.id, len(m.payload)) for _, m in found] == [("1", 10), ("2", 10)]

    async def test_pages_follow_each_other_without_a_gap_or_a_repeat(self, store: Any) -> None:
        for number in range(10):
            await store.store(ADA, message(str(number)))
        found, after = [], 0
        while page := await store.waiting(ADA, after, 3, START):
            assert len(page) <= 3
            found += [m.id for _, m in page]
            after = page[-1][0]

        assert found == [str(number) for number in range(10)]

    async def test_a_position_is_never_given_twice(self, store: Any) -> None:
        """A reader that goes on after the last message gets the newer ones, even after removals."""
        await store.store(ADA, message("1"))
        [(after, _)] = await store.waiting(ADA, 0, 10, START)
        await store.remove(ADA, "1")
        await store.store(ADA, message("2"))

        assert [m.id for _, m in await store.waiting(ADA, after, 10, START)] == ["2"]

    async def test_a_removed_message_is_gone_once(self, store: Any) -> None:
        await store.store(ADA, message("1"))
        await store.store(ADA, message("2"))

        assert await store.remove(ADA, "1") is True
        assert await store.remove(ADA, "1") is False
        assert await store.remove(BOB, "2") is False
        assert await ids(store) == ["2"]

    async def test_calls_at_the_same_time_are_all_done(self, store: Any) -> None:
        await asyncio.gather(*(store.store(ADA, message(str(n))) for n in range(500)))

        assert await ids(store) == [str(n) for n in range(500)]

    async def test_clients_share_what_is_kept(self, connect: Callable[..., Any]) -> None:
        async with opened(connect()) as one, opened(connect()) as other:
            await one.store(ADA, message("1"))

            assert await ids(other) == ["1"]

    async def test_what_is_kept_outlives_a_close(self, connect: Callable[..., Any]) -> None:
        client = connect()
        async with opened(client):
            await client.store(ADA, message("1"))
        async with opened(client):
            assert await ids(client) == ["1"]

    # --- limits

    async def test_beyond_the_count_the_oldest_goes_first(
        self, connect: Callable[..., Any]
    ) -> None:
        async with opened(connect(max_messages=2)) as store:
            assert await store.store(ADA, message("1")) == []
            assert await store.store(ADA, message("2")) == []
            await store.store(BOB, message("b"))

            [evicted] = await store.store(ADA, message("3"))

            assert (evicted.user_id, evicted.message) == (ADA, message("1"))
            assert evicted.reason is FailureReason.QUEUE_FULL
            assert await ids(store) == ["2", "3"]
            assert await ids(store, BOB) == ["b"]

    async def test_beyond_the_bytes_the_oldest_go_first(self, connect: Callable[..., Any]) -> None:
        async with opened(connect(max_bytes=100)) as store:
            for number in range(4):
                await store.store(ADA, message(str(number), size=25))

            evicted = await store.store(ADA, message("large", size=60))

            assert [one.message.id for one in evicted] == ["0", "1", "2"]
            assert await ids(store) == ["3", "large"]

    async def test_a_message_larger_than_the_limit_is_kept_alone(
        self, connect: Callable[..., Any]
    ) -> None:
        async with opened(connect(max_bytes=100)) as store:
            await store.store(ADA, message("1"))

            [evicted] = await store.store(ADA, message("large", size=101))

            assert evicted.message.id == "1"
            assert await ids(store) == ["large"]

    async def test_what_was_removed_makes_room(self, connect: Callable[..., Any]) -> None:
        async with opened(connect(max_messages=2, max_bytes=20)) as store:
            await store.store(ADA, message("1"))
            await store.store(ADA, message("2"))
            await store.remove(ADA, "1")

            assert await store.store(ADA, message("3")) == []

    # --- age

    async def test_what_has_outlived_its_ttl_is_not_delivered(self, store: Any) -> None:
        await store.store(ADA, message("short", ttl=10))
        await store.store(ADA, message("long", ttl=20))

        assert await ids(store, now=later(9.9)) == ["short", "long"]
        assert await ids(store, now=later(10)) == ["long"]

    async def test_what_is_too_old_is_not_delivered(self, connect: Callable[..., Any]) -> None:
        async with opened(connect(max_age=60)) as store:
            await store.store(ADA, message("1", ttl=1000))
            await store.store(ADA, message("2", after=30))

            assert await ids(store, now=later(59.9)) == ["1", "2"]
            assert await ids(store, now=later(60)) == ["2"]

    async def test_what_is_too_old_is_removed_and_told_once(self, store: Any) -> None:
        await store.store(ADA, message("1", ttl=10))
        await store.store(ADA, message("2", ttl=50))
        await store.store(BOB, message("3", ttl=10))

        assert await store.expire(later(9), 100) == []
        evicted = await store.expire(later(10), 100)

        assert [(one.user_id, one.message.id) for one in evicted] == [(ADA, "1"), (BOB, "3")]
        assert {one.reason for one in evicted} == {FailureReason.TIMEOUT}
        assert await store.expire(later(10), 100) == []
        assert await ids(store) == ["2"]

    async def test_expiring_stops_at_its_limit(self, store: Any) -> None:
        for number in range(5):
            await store.store(ADA, message(str(number), ttl=10))

        assert [len(await store.expire(later(10), 2)) for _ in range(4)] == [2, 2, 1, 0]

    async def test_room_is_made_of_what_is_too_old_first(self, connect: Callable[..., Any]) -> None:
        async with opened(connect(max_messages=2)) as store:
            await store.store(ADA, message("1"))
            await store.store(ADA, message("2", ttl=10))

            [evicted] = await store.store(ADA, message("3", after=10))

            assert (evicted.message.id, evicted.reason) == ("2", FailureReason.TIMEOUT)
            assert await ids(store) == ["1", "3"]

    async def test_an_age_beyond_every_date_is_no_limit(self, connect: Callable[..., Any]) -> None:
        async with opened(connect(max_age=1e15)) as store:
            await store.store(ADA, message("1"))

            assert await store.expire(later(1e9), 10) == []

    # --- claims

    async def test_one_at_a_time_has_the_claim(self, store: Any) -> None:
        assert await store.claim(ADA, "n1", 10) == "n1"
        assert await store.claim(ADA, "n2", 10) == "n1"
        assert await store.claim(BOB, "n2", 10) == "n2"

    async def test_a_claim_can_be_given_back_by_its_owner_only(self, store: Any) -> None:
        await store.claim(ADA, "n1", 10)

        await store.release(ADA, "n2")
        assert await store.claim(ADA, "n2", 10) == "n1"
        await store.release(ADA, "n1")
        assert await store.claim(ADA, "n2", 10) == "n2"

    async def test_a_claim_lapses_by_itself(self, store: Any, clock: SettableClock) -> None:
        await store.claim(ADA, "n1", 10)

        clock.now += 9.9
        assert await store.claim(ADA, "n2", 10) == "n1"
        clock.now += 0.2
        assert await store.claim(ADA, "n2", 10) == "n2"

    async def test_claiming_again_renews(self, store: Any, clock: SettableClock) -> None:
        await store.claim(ADA, "n1", 10)
        clock.now += 9
        assert await store.claim(ADA, "n1", 10) == "n1"
        clock.now += 9

        assert await store.claim(ADA, "n2", 10) == "n1"

    async def test_expiring_keeps_the_claims_that_stand(
        self, store: Any, clock: SettableClock
    ) -> None:
        await store.claim(ADA, "n1", 10)
        await store.claim(BOB, "n1", 20)
        clock.now += 15
        await store.expire(START, 10)

        assert await store.claim(ADA, "n2", 10) == "n2"
        assert await store.claim(BOB, "n2", 10) == "n1"
