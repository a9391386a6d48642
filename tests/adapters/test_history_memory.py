"""The history in memory: what every store promises, and what it holds."""

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.application.ports.stores import Lifecycle
from eyewall.domain.history import Entry
from eyewall.testing.contracts.bus import opened
from eyewall.testing.contracts.history import KEEPS, HistoryContract, entry, numbers


class TestMemoryHistory(HistoryContract):
    @pytest.fixture
    def connect(self):
        history = MemoryHistory()
        return lambda: history

    async def test_a_closed_store_keeps_what_it_holds(self, connect):
        store = connect()
        assert isinstance(store, Lifecycle)
        async with opened(store):
            await self.fill(store, 1)

        async with opened(store):
            assert numbers(await self.read(store)) == [1]

    async def test_a_removed_room_takes_no_memory(self, history):
        await self.fill(history, 3)

        await history.remove("lab")

        assert history._logs == {}

    async def test_a_room_keeps_no_more_bytes_than_it_may(self):
        """The oldest go. One message that is larger by itself stays, alone."""
        size = len(entry(1).payload)
        store = MemoryHistory(max_room_bytes=3 * size)

        await self.fill(store, 5)
        await self.fill(store, 1, room="den")
        assert numbers(await self.read(store)) == [3, 4, 5]
        assert numbers(await self.read(store, room="den")) == [1]

        at = await store.append("lab", Entry(b"x" * 4 * size), KEEPS, self.now())
        page = await self.read(store)
        assert ([len(e.payload) for e in page.entries], page.first) == ([4 * size], at.offset)
        await self.fill(store, 1)
        assert numbers(await self.read(store)) == [1]

    @pytest.mark.parametrize("most", [0, -1, 1.5, True, "1"])
    def test_a_bound_that_is_none_is_refused(self, most):
        with pytest.raises(ValueError, match="max_room_bytes"):
            MemoryHistory(max_room_bytes=most)
