"""api.md: who is let in, from where, and how many."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.exceptions import InvalidStatus

from eyewall import (
    ConnMeta,
    DisconnectReason,
    Handshake,
    Server,
    Unauthorized,
    UserId,
)
from tests.entrypoints.wire import (
    UNIT,
    eventually,
    peer,
    peers,
    raw_peer,
    running,
    soon,
)

ADA = UserId("ada")


def known(handshake) -> ConnMeta:
    return ConnMeta(user_id=ADA)


async def status_of(server: Server, **options) -> int:
    """How the handshake was answered."""
    try:
        async with peer(server, **options):
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


# --- who is let in


@pytest.mark.parametrize(
    ("rule", "origin", "status"),
    [
        (["https://chat.example"], "https://chat.example", 101),
        (["https://chat.example"], "http://chat.example", 403),
        (["https://chat.example"], "https://chat.example:8443", 403),
        (["https://chat.example"], "https://evil.example", 403),
        (["https://*.example"], "https://a.example", 101),
        (["https://*.example"], "https://a.b.example", 101),
        (["https://*.example"], "https://example", 403),
        (["https://*.example"], "https://aexample", 403),
        (["https://*.example"], "https://a.example.evil", 403),
        (["*"], "https://anywhere.example", 101),
        ([], "https://anywhere.example", 403),
        (["https://a.example", "https://b.example"], "https://b.example", 101),
        (["https://A.example"], "https://a.EXAMPLE", 101),
    ],
)
async def test_a_list_of_origins_has_wildcards_for_hosts(rule, origin, status):
    async with running(check_origin=rule) as server:
        assert await status_of(server, origin=origin) == status


@pytest.mark.parametrize("rule", [None, [], ["https://chat.example"]])
async def test_a_request_without_an_origin_is_no_browser(rule):
    async with running(check_origin=rule) as server:
        assert await status_of(server) == 101


async def test_a_callable_decides_about_origins():
    asked = []

    def rule(origin, handshake):
        asked.append((origin, handshake.path, handshake.query.get("a")))
        return origin == "https://good.example"

    async with running(check_origin=rule) as server:
        assert await status_of(server, origin="https://good.example", query="?a=1") == 101
        assert await status_of(server, origin="https://bad.example") == 403

    assert asked == [("https://good.example", "/ws", "1"), ("https://bad.example", "/ws", None)]


async def test_an_authenticator_sees_the_handshake():
    seen: list[Handshake] = []

    def look(handshake):
        seen.append(handshake)
        return ConnMeta(user_id=ADA, roles=["staff"], tags={"a", "b"}, attributes={"n": 1})

    headers = {"Cookie": "session=abc; other=x", "Authorization": "Bearer t"}
    async with (
        running(authenticator=look) as server,
        peer(server, query="?token=t1&token=t2", headers=headers) as client,
    ):
        meta = server.hub.get_meta(client.conn_id)

    (handshake,) = seen
    assert handshake.path == "/ws"
    assert handshake.query.get("token") == "t1"
    assert handshake.query.get("nothing") is None
    assert handshake.headers.get("authorization") == "Bearer t"
    assert handshake.headers.get("AUTHORIZATION") == "Bearer t"
    assert handshake.cookies["session"] == "abc"
    assert handshake.ip == "127.0.0.1"
    assert list(handshake.subprotocols) == ["eyewall.v1.json"]
    assert (meta.user_id, meta.roles, meta.tags) == ("ada", {"staff"}, {"a", "b"})
    assert meta.attributes["n"] == 1


class Plain:
    def authenticate(self, handshake):
        return known(handshake)


class Waiting:
    async def authenticate(self, handshake):
        return known(handshake)


async def waiting(handshake):
    return known(handshake)


@pytest.mark.parametrize("authenticator", [Plain(), Waiting(), known, waiting])
async def test_an_authenticator_is_an_object_or_a_callable_plain_or_async(authenticator):
    async with running(authenticator=authenticator) as server, peer(server):
        assert server.hub.users() == ["ada"]


async def none_later(handshake):
    return None


async def refuse_later(handshake):
    raise Unauthorized("no")


def refuse(handshake):
    raise Unauthorized("no")


@pytest.mark.parametrize("refusal", [lambda handshake: None, none_later, refuse, refuse_later])
async def test_none_or_unauthorized_is_401(refusal):
    async with running(authenticator=refusal) as server:
        assert await status_of(server) == 401
        assert server.hub.connection_ids() == []


async def test_an_authenticator_that_fails_lets_nobody_in():
    def broken(handshake):
        raise RuntimeError("the database is down: secret")

    async with running(authenticator=broken) as server:
        assert await status_of(server) in {401, 500, 503}
        assert server.hub.connection_ids() == []


async def test_forwarded_addresses_are_believed_only_from_trusted_proxies():
    headers = {"X-Forwarded-For": "203.0.113.7"}
    async with running() as server, peer(server, headers=headers) as client:
        assert server.hub.get_meta(client.conn_id).ip == "127.0.0.1"
    for proxies in (["127.0.0.1"], ["127.0.0.0/8"]):
        async with (
            running(trusted_proxies=proxies) as server,
            peer(server, headers=headers) as client,
        ):
            assert server.hub.get_meta(client.conn_id).ip == "203.0.113.7"
    async with (
        running(trusted_proxies=["10.0.0.0/8"]) as server,
        peer(server, headers=headers) as client,
    ):
        assert server.hub.get_meta(client.conn_id).ip == "127.0.0.1"


async def test_the_nearest_address_that_is_no_trusted_proxy_counts():
    """What a client wrote there itself stands further to the left."""
    headers = {"X-Forwarded-For": "1.2.3.4, 203.0.113.7, 10.0.0.1"}
    proxies = ["127.0.0.1", "10.0.0.0/8"]
    async with running(trusted_proxies=proxies) as server, peer(server, headers=headers) as client:
        assert server.hub.get_meta(client.conn_id).ip == "203.0.113.7"


# --- how many


async def test_the_limit_of_a_node():
    async with running(max_connections=2) as server, peers(server, 2):
        assert await status_of(server) == 503


async def test_the_limit_of_a_user_replaces_the_oldest():
    options = {"max_connections_per_user": 1, "authenticator": known}
    server = Server(**options)
    reasons = []
    server.hub.on_disconnect(lambda conn, reason: reasons.append(reason))
    async with running(server), peer(server) as old, peer(server) as new:
        assert await old.closed() == (4501, "replaced")
        assert server.hub.user_connections(ADA) == [new.conn_id]
        await eventually(lambda: reasons == [DisconnectReason.REPLACED])


async def test_the_limit_of_a_user_is_not_for_those_without_one():
    async with running(max_connections_per_user=1) as server, peers(server, 3) as clients:
        for client in clients:
            assert await client.before_fence() == []


async def test_the_limit_of_an_address_counts_the_clients_own():
    options = {"max_connections_per_address": 1, "trusted_proxies": ["127.0.0.1"]}
    same, other = {"X-Forwarded-For": "203.0.113.7"}, {"X-Forwarded-For": "203.0.113.8"}
    async with running(**options) as server, peer(server, headers=same):
        assert await status_of(server, headers=same) == 503
        assert await status_of(server, headers=other) == 101


async def test_a_refused_handshake_takes_no_place():
    answers = iter([None, None, ConnMeta(user_id=ADA)])
    async with running(max_connections=1, authenticator=lambda h: next(answers)) as server:
        assert await status_of(server) == 401
        assert await status_of(server) == 401
        assert await status_of(server) == 101


async def test_places_are_held_while_authentication_waits():
    """Many at once never exceed the limit."""
    go_on = asyncio.Event()

    async def slow(handshake):
        await go_on.wait()
        return ConnMeta()

    async with (
        running(max_connections=2, authenticator=slow) as server,
        contextlib.AsyncExitStack() as stack,
    ):

        async def come() -> int:
            try:
                await stack.enter_async_context(peer(server))
            except InvalidStatus as refusal:
                return refusal.response.status_code
            return 101

        coming = [asyncio.create_task(come()) for _ in range(6)]
        await soon(asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED))
        go_on.set()
        statuses = sorted([await soon(task) for task in coming])

        assert statuses == [101, 101, 503, 503, 503, 503]


async def test_nobody_is_let_in_after_the_client_gave_up():
    """A client that left while it was asked for is no connection."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    server = Server(authenticator=lambda handshake: wait())
    seen = []
    server.hub.on_disconnect(lambda conn, reason: seen.append(conn.id))

    async def wait():
        begun.set()
        await go_on.wait()
        return ConnMeta()

    async with running(server):
        async with raw_peer(server, upgrade=False) as client:
            asking = asyncio.create_task(client.get())
            await soon(begun.wait())
            asking.cancel()
        go_on.set()
        await asyncio.sleep(0.05 * UNIT)
        await eventually(lambda: not server.hub.connection_ids())
