"""The offline store in memory: what every one promises, and its bounds on the whole."""

import pytest

from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.domain.identity import UserId
from eyewall.testing.contracts.offline import ADA, BOB, START, OfflineContract, ids, message


class TestMemoryOffline(OfflineContract):
    @pytest.fixture
    def connect(self, clock):
        made = []

        def connect(**limits):
            if not made:
                made.append(MemoryOffline(clock=clock, **limits))
            return made[0]

        return connect


async def test_the_whole_is_bounded_by_count():
    """Users without end are written to: the oldest message of all goes."""
    store = MemoryOffline(max_total_messages=3)
    await store.store(BOB, message("oldest"))
    for number in range(2):
        await store.store(ADA, message(str(number)))

    [evicted] = await store.store(UserId("eve"), message("new"))

    assert (evicted.user_id, evicted.message.id) == (BOB, "oldest")
    assert await ids(store, BOB) == []
    assert len(store) == 3


async def test_the_whole_is_bounded_by_bytes():
    store = MemoryOffline(max_total_bytes=25)
    await store.store(ADA, message("1"))
    await store.store(BOB, message("2"))

    [evicted] = await store.store(BOB, message("3"))

    assert evicted.message.id == "1"


async def test_nothing_is_left_of_what_has_gone():
    store = MemoryOffline()
    for user in (ADA, BOB):
        await store.store(user, message("1", ttl=5))
        await store.store(user, message("2"))
        await store.remove(user, "2")
    await store.expire(message("x", after=5).stored_at, 10)
    await store.claim(ADA, "n1", 5)
    await store.release(ADA, "n1")

    assert len(store) == 0
    assert await ids(store, now=START) == []
    for name in ("_boxes", "_sizes", "_order", "_claims"):
        assert not getattr(store, name), name
    assert store._size == 0


@pytest.mark.parametrize("limit", ["max_messages", "max_bytes", "max_total_messages", "max_age"])
def test_a_limit_of_nothing_is_refused(limit):
    with pytest.raises(ValueError, match=limit):
        MemoryOffline(**{limit: 0})
