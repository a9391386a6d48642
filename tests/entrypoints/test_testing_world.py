"""Time and rest, as the hubs of one test share them."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import Server
from eyewall.testing import TestHub
from eyewall.testing.world import World


async def test_stretches_of_time_add_up():
    world, seen = World(), []
    begun = world.clock.now()
    world.clock.call_later(3, lambda: seen.append(world.clock.now() - begun))
    world.advance(2)
    world.advance(2)
    assert world.clock.now() == begun
    await world.settle()

    assert seen == [3.0]
    assert world.clock.now() == begun + 4


async def test_only_so_many_seconds_can_pass():
    with pytest.raises(ValueError, match="advance"):
        World().advance(-1)


async def test_time_may_pass_while_time_passes():
    """A timer's work may call for more of it."""
    world = World()
    begun = world.clock.now()
    world.clock.call_later(1, lambda: world.advance(5))
    await world.advance(1)

    assert world.clock.now() == begun + 6


async def test_what_fails_when_it_is_due_fails_the_test():
    world = World()
    world.clock.call_later(1, lambda: [].pop())
    world.advance(1)

    with pytest.raises(IndexError):
        await world.settle()


async def test_it_does_not_keep_a_hub_from_its_end():
    server, ended = Server(), []

    @server.on_shutdown
    async def end():
        ended.append(1)

    hub = await TestHub(server).__aenter__()
    hub.world.clock.call_later(1, lambda: [].pop())
    await asyncio.wait([hub.advance(1)])
    with pytest.raises(IndexError):
        await hub.__aexit__()

    assert ended == [1]


async def test_a_hub_that_fails_at_its_start_stands_in_for_its_server_no_longer():
    """What is due in the world by then is awaited before the hub is entered."""
    server = Server()
    own = server.hub.node_id
    async with TestHub(Server()) as first:
        first.world.clock.call_later(1, lambda: [].pop())
        first.advance(1)
        with pytest.raises(IndexError):
            async with TestHub(server, beside=first):
                pass
        assert server.hub.node_id == own
        async with TestHub(server, beside=first) as again:
            await again.connect()


async def test_an_end_that_needs_time_gets_as_much_as_it_needs(monkeypatch):
    monkeypatch.setattr("eyewall.testing.world.OUTSIDE_TIMEOUT", 0.0)
    world, over = World(), asyncio.Event()
    world.clock.call_later(2.5, over.set)

    async def end():
        await over.wait()

    await world.end(end())

    assert over.is_set()


async def test_an_end_that_needs_the_outside_is_waited_for():
    world, over = World(), asyncio.Event()
    begun = world.clock.now()
    asyncio.get_running_loop().call_later(0.01, over.set)

    async def end():
        await over.wait()

    await world.end(end())

    assert world.clock.now() == begun


async def test_a_hub_s_plain_methods_and_registrations_are_its_own():
    async with TestHub(Server()) as th:
        assert th.hub.node_id == "test-1"

        @th.hub.on_connect
        def hook(conn):
            """Is there."""

        assert th.hub.remove_hook(hook)
        assert not hasattr(th.hub, "nothing")
