"""The history in memory: what every store promises, and what it holds."""

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.application.stores import Opens
from tests.contracts.bus import opened
from tests.contracts.history import HistoryContract, numbers


class TestMemoryHistory(HistoryContract):
    @pytest.fixture
    def connect(self):
        history = MemoryHistory()
        return lambda: history

    async def test_a_closed_store_keeps_what_it_holds(self, connect):
        store = connect()
        assert isinstance(store, Opens)
        async with opened(store):
            await self.fill(store, 1)

        async with opened(store):
            assert numbers(await self.read(store)) == [1]

    async def test_a_removed_room_takes_no_memory(self, history):
        await self.fill(history, 3)

        await history.remove("lab")

        assert history._logs == {}
