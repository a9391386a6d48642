"""Nodes for a test, started and ended with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from tests.application.fakes import FakeClock, Harness

MakeNode = Callable[..., Awaitable[Harness]]


@pytest.fixture
def clock() -> FakeClock:
    """The clock of all nodes of the test."""
    return FakeClock()


@pytest.fixture
async def make_node(clock: FakeClock) -> AsyncIterator[MakeNode]:
    """A function that starts a node; all nodes of a test are one cluster."""
    shared: dict[str, Any] = {
        "pubsub": MemoryPubSub(),
        "state": MemoryState(clock=clock.now),
        "history": MemoryHistory(),
    }
    async with AsyncExitStack() as stack:
        number = 0

        async def make(node_id: str | None = None, **config: Any) -> Harness:
            nonlocal number
            number += 1
            harness = Harness(node_id or f"n{number}", clock=clock, **{**shared, **config})
            return await stack.enter_async_context(harness)

        yield make


@pytest.fixture
async def node(make_node: MakeNode) -> Harness:
    """One node that lets clients use the ``system:`` commands."""
    return await make_node(client_commands=True)


# --- a pair


@pytest.fixture
def pair_config() -> dict[str, Any]:
    """What both nodes of the pair are made with; modules override it."""
    return {}


@pytest.fixture
async def one(make_node: MakeNode, pair_config: dict[str, Any]) -> Harness:
    """The first of two nodes of one cluster, or a cluster of one node without ``two``."""
    return await make_node(**pair_config)


@pytest.fixture
async def two(one: Harness, make_node: MakeNode, pair_config: dict[str, Any]) -> Harness:
    """The second node, which starts after ``one``."""
    return await make_node(**pair_config)
