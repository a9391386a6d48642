"""What the tests of the two pages start with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.entrypoints.house import House, Pair, cluster, open_house


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A server whose clients come by name."""
    async with open_house() as house:
        yield house


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two servers of one cluster."""
    async with cluster() as pair:
        yield pair
