"""Limits on who knocks: how long, how much, how many; and that they free themselves."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall import ConnMeta, Forbidden, Server, UserId
from tests.entrypoints.wire import (
    CLOSE,
    TEXT,
    UNIT,
    UPGRADE,
    WITHIN,
    RawPeer,
    frame,
    peer,
    raw_peer,
    running,
    soon,
)

BRIEF = 0.3 * UNIT


def head(fields: dict[str, str], path: str = "/ws") -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x"]
    lines += [f"{name}: {value}" for name, value in (UPGRADE | fields).items()]
    return "\r\n".join([*lines, "", ""]).encode()


def ada(handshake) -> ConnMeta:
    return ConnMeta(user_id=UserId("ada"))


async def status_of(server: Server, **fields: str) -> int:
    async with raw_peer(server, upgrade=False) as client:
        return (await client.get(**fields)).status


async def let_in(server: Server, **fields: str) -> None:
    """Return when somebody can come in."""
    async with asyncio.timeout(WITHIN):
        while (status := await status_of(server, **fields)) != 101:
            assert status == 503
            await asyncio.sleep(0.005)


# --- how long


async def test_a_byte_a_moment_does_not_keep_a_handshake_open():
    async with (
        running(handshake_timeout=BRIEF) as server,
        raw_peer(server, upgrade=False) as client,
    ):

        async def drip() -> None:
            for byte in head({"X-Long": "x" * 5000}):
                await client.write(bytes([byte]))
                await asyncio.sleep(BRIEF / 20)

        dripping = asyncio.ensure_future(drip())
        try:
            assert await client.ended() == b""
        except ConnectionError:
            pass  # the byte after the end was answered with a reset
        finally:
            dripping.cancel()
        assert server.hub.connection_ids() == []


async def test_who_is_in_has_no_deadline_any_more():
    async with running(handshake_timeout=BRIEF) as server, peer(server) as client:
        async with raw_peer(server, upgrade=False) as silent:
            assert await silent.ended() == b""  # it came later, and its time has run out

        assert await client.before_fence() == []


# --- how much


async def test_a_thousand_header_fields_are_refused_with_431():
    async with running() as server:
        assert await status_of(server, **{f"X_{n}": "1" for n in range(1000)}) == 431
        assert await status_of(server, **{f"X_{n}": "1" for n in range(50)}) == 101


async def test_a_huge_header_is_refused_with_431():
    async with running() as server, raw_peer(server, upgrade=False) as client:
        await client.write(head({"X-Long": "x" * 1_000_000}))
        assert (await client.ended()).startswith(b"HTTP/1.1 431 ")
        assert server.hub.connection_ids() == []
        assert await status_of(server, X_Long="x" * 10_000) == 101


# --- how many


async def test_an_address_is_counted_behind_trusted_proxies():
    options = {"max_connections_per_address": 2, "trusted_proxies": ["127.0.0.1"]}
    async with running(**options) as server, raw_peer(server, upgrade=False) as first:
        assert (await first.get(X_Forwarded_For="203.0.113.7")).status == 101
        async with raw_peer(server, upgrade=False) as second:
            assert (await second.get(X_Forwarded_For="203.0.113.7")).status == 101
            async with raw_peer(server, upgrade=False) as third:
                # What a client puts there itself stands further to the left.
                refused = await third.get(X_Forwarded_For="198.51.100.1, 203.0.113.7")
                assert refused.status == 503
                assert int(refused.headers["retry-after"]) >= 1
            assert await status_of(server, X_Forwarded_For="203.0.113.8") == 101

        await let_in(server, X_Forwarded_For="203.0.113.7")


async def test_an_ipv6_network_of_64_bits_is_one_address():
    options = {"max_connections_per_address": 1, "trusted_proxies": ["127.0.0.1"]}
    async with running(**options) as server, raw_peer(server, upgrade=False) as first:
        assert (await first.get(X_Forwarded_For="2001:db8:1:2::1")).status == 101

        assert await status_of(server, X_Forwarded_For="2001:db8:1:2:ffff::9") == 503
        assert await status_of(server, X_Forwarded_For="2001:db8:1:3::1") == 101


async def test_a_header_of_somebody_who_is_not_trusted_frees_nobody():
    async with running(max_connections_per_address=1) as server, raw_peer(server):
        assert await status_of(server, X_Forwarded_For="203.0.113.8") == 503


async def test_a_user_s_replaced_connections_free_their_places():
    options = {"max_connections": 2, "max_connections_per_user": 1, "authenticator": ada}
    async with running(**options) as server, contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(peer(server))
        for _ in range(5):
            new = await stack.enter_async_context(peer(server))
            assert await old.closed() == (4501, "replaced")
            old = new


# --- and free again


async def by_a_close(server: Server, client: RawPeer) -> None:
    await client.write(frame(CLOSE, b"\x03\xe8"))
    assert (await client.read_frame()).close[0] == 1000


async def by_leaving(server: Server, client: RawPeer) -> None:
    client.leave()


async def by_a_reset(server: Server, client: RawPeer) -> None:
    client.reset()


async def by_a_violation(server: Server, client: RawPeer) -> None:
    await client.write(frame(TEXT, b"{}", mask=False))


async def by_leaving_in_a_frame(server: Server, client: RawPeer) -> None:
    await client.write(frame(TEXT, b"x" * 100)[:50])
    client.leave()


async def by_an_operator(server: Server, client: RawPeer) -> None:
    (conn_id,) = server.hub.connection_ids()
    assert await server.hub.disconnect_conn(conn_id)


ONE = {"max_connections": 1, "max_connections_per_address": 1}


@pytest.mark.parametrize(
    "end",
    [by_a_close, by_leaving, by_a_reset, by_a_violation, by_leaving_in_a_frame, by_an_operator],
    ids=lambda end: end.__name__,
)
async def test_a_place_is_free_after_every_end(end):
    async with running(**ONE) as server, raw_peer(server) as client:
        assert await status_of(server) == 503
        await end(server, client)

        await let_in(server)


async def hangs(handshake) -> None:
    await asyncio.Event().wait()


async def fails(handshake) -> None:
    raise RuntimeError("the database is down")


@pytest.mark.parametrize(
    ("authenticate", "status"),
    [(lambda handshake: None, 401), (fails, 500), (hangs, None)],
    ids=["refused", "failed", "too late"],
)
async def test_a_place_is_free_after_an_authentication_that_came_to_nothing(authenticate, status):
    async def chosen(handshake):
        if handshake.query.get("first") is None:
            return ConnMeta()
        answer = authenticate(handshake)
        return await answer if asyncio.iscoroutine(answer) else answer

    async with (
        running(authenticator=chosen, handshake_timeout=BRIEF, **ONE) as server,
        raw_peer(server, upgrade=False) as client,
    ):
        if status is None:
            await client.write(head({}, "/ws?first=1"))
            assert await client.ended() == b""
        else:
            assert (await client.get("/ws?first=1")).status == status

        await let_in(server)


@pytest.mark.parametrize("leave", [RawPeer.leave, RawPeer.reset], ids=["leave", "reset"])
async def test_a_place_is_free_after_who_left_while_it_was_asked_for(leave):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(handshake):
        begun.set()
        await go_on.wait()
        return ConnMeta()

    async with running(authenticator=slow, **ONE) as server:
        async with raw_peer(server, upgrade=False) as client:
            await client.write(head({}))
            await soon(begun.wait())
            assert await status_of(server) == 503
            leave(client)
        go_on.set()

        await let_in(server)


async def test_a_place_is_free_after_a_hook_refused():
    server = Server(**ONE)

    @server.hub.on_connect
    async def refuse_the_first(conn):
        server.hub.remove_hook(refuse_the_first)
        raise Forbidden("not you")

    async with running(server), raw_peer(server) as client:
        assert (await client.read_frame()).close == (1008, "policy_violation")

        await let_in(server)


@pytest.mark.parametrize("changes", [{"Upgrade": "h2c"}, {"Origin": "http://evil.example"}])
async def test_what_is_refused_by_itself_takes_no_place(changes):
    async with running(**ONE) as server, raw_peer(server, upgrade=False) as client:
        assert (await client.get(**changes)).status in {403, 426}

        assert await status_of(server) == 101
