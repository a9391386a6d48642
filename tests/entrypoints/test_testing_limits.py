"""A limiter in a test: it goes by the hub's time wherever it is asked."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import ConnMeta, RateLimited, Server, TokenBucketLimiter, Unauthorized
from eyewall.middleware import rate_limit
from eyewall.testing import TestHub

# As an application has it: made once, when its module is imported.
limiter = TokenBucketLimiter(1, 2)


async def ok(ctx, msg):
    return "ok"


def of_the_server():
    server = Server(limiter=limiter)
    server.handle("t", ok)
    return server


def of_all_handlers():
    server = Server()
    server.use(rate_limit(limiter))
    server.handle("t", ok)
    return server


def of_one_handler():
    server = Server()
    server.handle("t", ok, rate_limit(limiter))
    return server


def of_an_own_one():
    """That counts by tenant, say, and asks the ready-made one."""
    server = Server(limiter=lambda key: limiter.allow(key.upper()))
    server.handle("t", ok)
    return server


def in_a_handler():
    server = Server()

    @server.on("t")
    async def strict(ctx, msg):
        if (wait := limiter.allow(ctx.conn.id)) > 0:
            raise RateLimited(wait)

    return server


def in_a_thread():
    server = Server()

    @server.on("t")
    def strict(ctx, msg):
        if (wait := limiter.allow(ctx.conn.id)) > 0:
            raise RateLimited(wait)

    return server


places = pytest.mark.parametrize(
    "place",
    [of_the_server, of_all_handlers, of_one_handler, of_an_own_one, in_a_handler, in_a_thread],
)


@places
@pytest.mark.parametrize("test", ["one", "the next one"])
async def test_time_passes_for_a_limiter_as_for_the_hub(place, test):
    """Whatever an earlier test has used up is there again."""
    async with TestHub(place()) as th:
        alice = await th.connect(user="alice")
        await alice.request("t")
        await alice.request("t")
        with pytest.raises(RateLimited) as limited:
            await alice.request("t")
        assert limited.value.retry_after == 1.0

        th.advance(0.9)
        with pytest.raises(RateLimited):
            await alice.request("t")
        th.advance(0.1)
        await alice.request("t")


async def test_a_hub_that_was_opened_in_another_context_has_the_same_time():
    """As a fixture may do it."""
    th = await asyncio.create_task(TestHub(of_the_server()).__aenter__())
    alice = await th.connect(user="alice")
    for _ in range(4):
        await alice.request("t")
        await th.advance(1)
    await th.__aexit__()


async def test_a_limit_in_an_authenticator_goes_by_it_too():
    attempts = TokenBucketLimiter(0.1, 1)

    def authenticate(handshake):
        if attempts.allow(handshake.ip):
            raise Unauthorized("slowly")
        return ConnMeta()

    async with TestHub(Server(authenticator=authenticate)) as th:
        await th.connect()
        with pytest.raises(Unauthorized):
            await th.connect()
        await th.advance(10)
        await th.connect()


async def test_the_time_of_the_real_world_is_as_it_was_afterwards():
    mine = TokenBucketLimiter(0.001, 1)
    assert mine.allow("ada") == 0.0
    async with TestHub(Server(limiter=mine)) as th:
        await th.advance(5000)
        assert mine.allow("ada") == 0.0

    assert mine.allow("ada") > 900
    assert len(mine) == 1


@pytest.mark.parametrize("same", [True, False], ids=["one cluster", "two"])
async def test_hubs_may_close_in_any_order(same):
    """While one is open the test goes by its time, and by the real one when none is."""
    mine = TokenBucketLimiter(0.001, 1)
    mine.allow("ada")
    first = TestHub(Server())
    second = TestHub(Server(), beside=first) if same else TestHub(Server())
    await first.__aenter__()
    await second.__aenter__()
    mine.allow("ada")
    await first.__aexit__()
    await second.advance(5000)
    assert mine.allow("ada") == 0.0

    await second.__aexit__()

    assert mine.allow("ada") > 900


async def test_a_limiter_with_a_clock_of_its_own_keeps_it():
    mine = TokenBucketLimiter(1, 1, clock=lambda: 0.0)
    server = Server(limiter=mine)
    server.handle("t", ok)
    async with TestHub(server) as th:
        alice = await th.connect(user="alice")
        await alice.request("t")
        await th.advance(60)
        with pytest.raises(RateLimited):
            await alice.request("t")


async def test_a_test_may_take_another_limiter_or_none():
    server = Server(limiter=lambda key: 60.0)
    server.handle("t", ok)
    async with TestHub(server, limiter=None) as th:
        await (await th.connect()).request("t")
    async with TestHub(server, limiter=lambda key: 9.0) as th:
        alice = await th.connect()
        with pytest.raises(RateLimited) as limited:
            await alice.request("t")

    assert limited.value.retry_after == 9.0
