"""How a client hears that the authenticator said no: in HTTP, or by a close with 4504."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import ClientSession, WSMsgType

from eyewall import (
    CompressionConfig,
    ConnMeta,
    Forbidden,
    HeartbeatConfig,
    Overloaded,
    Server,
    Settings,
    Unauthorized,
    Unavailable,
)
from eyewall.adapters.web.sockets import loop
from eyewall.settings.settings import SettingsError
from eyewall.testing import TestHub
from tests.adapters.web.support import Client, masked, request
from tests.entrypoints.doorstep import EMBEDDED, serving
from tests.entrypoints.house import by_name
from tests.entrypoints.wire import CLOSE, UNIT, eventually, peer, raw_peer, running

BOTH = ["eyewall.v1.json", "eyewall.v1.msgpack"]


def nobody(handshake):
    return None


async def nobody_later(handshake):
    await asyncio.sleep(0)


def raises(kind):
    def refuse(handshake):
        raise kind("no")  # a new one each time: it keeps the handshake that it was raised in

    return refuse


def known(handshake):
    """Who has a name comes in."""
    return by_name(handshake) if handshake.query.get("name") else None


async def close_of(client):
    """The code and reason of the close frame, which is the first that comes."""
    found = await client.read_frame()
    assert found.opcode == CLOSE
    return found.close


# --- what the client gets


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("protocol", [None, *BOTH, "other, eyewall.v1.msgpack"])
@pytest.mark.parametrize(
    "authenticator",
    [nobody, nobody_later, raises(Unauthorized), raises(Forbidden)],
    ids=["none", "later", "unauthorized", "forbidden"],
)
async def test_who_is_not_let_in_is_told_by_a_close_and_gets_nothing_else(authenticator, protocol):
    async with (
        running(authenticator=authenticator, refuse_with="close") as server,
        raw_peer(server, upgrade=False) as client,
    ):
        answer = await client.get(Sec_WebSocket_Protocol=protocol)

        assert answer.status == 101
        assert answer.headers.get("sec-websocket-protocol") == (
            None if protocol is None else protocol.split()[-1]
        )
        assert await close_of(client) == (4504, "auth_failed")
        client.leave()
        assert await client.ended() == b""


@EMBEDDED
async def test_a_client_of_another_make_sees_the_code_too(embedded):
    async with (
        serving(embedded=embedded, authenticator=nobody, refuse_with="close") as here,
        ClientSession() as session,
        session.ws_connect(here.url) as client,
    ):
        assert (await client.receive()).type is WSMsgType.CLOSE
        assert client.close_code == 4504


async def test_a_client_that_compresses_sees_it_too():
    options = {"compression": CompressionConfig(), "authenticator": nobody}
    async with (
        running(refuse_with="close", **options) as server,
        peer(server, session=False, compression="deflate") as client,
    ):
        assert await client.closed() == (4504, "auth_failed")


async def test_by_default_it_is_told_in_http():
    async with running(authenticator=nobody) as server, raw_peer(server, upgrade=False) as client:
        answer = await client.get()

        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_who_is_let_in_notices_nothing():
    async with (
        running(authenticator=known, refuse_with="close") as server,
        peer(server, query="?name=ada") as client,
    ):
        assert client.welcome["data"]["user_id"] == "ada"
        assert server.hub.users() == ["ada"]


# --- what else knows of it


@EMBEDDED
async def test_it_is_a_refused_handshake_and_no_connection(embedded):
    options = {"authenticator": nobody, "refuse_with": "close", "max_connections": 1}
    told = []
    async with serving(embedded=embedded, **options) as here:
        here.server.hub.on_connect(lambda conn: told.append(conn))
        here.server.hub.on_disconnect(lambda conn, reason: told.append(reason))
        here.server.hub.on_error(lambda conn, error: told.append(error))

        assert (await here.status(Origin="http://here"))[0] == 101

        (line,) = await eventually(here.lines)
        assert (line["status"], line["reason"], line["close"]) == (101, "unauthorized", 4504)
        assert (line["origin"], line["host"]) == ("http://here", "here")
        assert here.server.hub.stats().refused == {"unauthorized": 1}
        assert here.metrics.reasons == ["unauthorized"]
        assert here.metrics.of("connected") == here.metrics.of("disconnected") == []
        assert here.server.hub.connection_ids() == told == []


@EMBEDDED
@pytest.mark.parametrize(
    ("options", "changes", "status", "reason"),
    [
        ({}, {"Origin": "https://evil.example"}, 403, "origin"),
        ({"allowed_hosts": ["other"]}, {}, 403, "host"),
        ({}, {"Upgrade": None}, 426, "not_an_upgrade"),
        ({}, {"Sec_WebSocket_Key": "short"}, 400, "key"),
        ({"authenticator": raises(Unavailable)}, {}, 503, "unavailable"),
        ({"authenticator": raises(Overloaded)}, {}, 503, "overloaded"),
        ({"authenticator": raises(ValueError)}, {}, 500, "authenticator_failed"),
        ({"max_connections": 1}, {}, 503, "connections"),
    ],
)
async def test_every_other_refusal_is_still_told_in_http(
    embedded, options, changes, status, reason
):
    """A page of another origin learns nothing, and who may come later is told when."""
    options = {"authenticator": known, "refuse_with": "close", **options}
    async with serving(embedded=embedded, **options) as here, contextlib.AsyncExitStack() as stack:
        if "max_connections" in options:
            await stack.enter_async_context(peer(here.url, query="?name=ada"))

        assert (await here.status(**changes))[0] == status
        assert here.server.hub.stats().refused == {reason: 1}


async def test_a_draining_server_still_says_so_in_http():
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(handshake):
        asked.set()
        await go_on.wait()

    async with (
        running(authenticator=slow, refuse_with="close") as server,
        raw_peer(server, upgrade=False) as client,
    ):
        answer = asyncio.ensure_future(client.get())
        await asked.wait()
        await server.shutdown(timeout=UNIT)

        assert (await answer).status == 503


# --- what it may cost


async def test_it_keeps_no_place_from_those_who_are_let_in():
    """Although the refused clients never answer the close."""
    options = {"max_connections": 1, "max_connections_per_address": 1, "authenticator": known}
    async with (
        running(refuse_with="close", **options) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            silent = await stack.enter_async_context(raw_peer(server))
            assert await close_of(silent) == (4504, "auth_failed")
        async with peer(server, query="?name=ada"):
            assert server.hub.users() == ["ada"]


async def test_one_that_never_answers_the_close_is_let_go():
    heartbeat = HeartbeatConfig(write_wait=0.05)
    options = {"authenticator": nobody, "heartbeat": heartbeat}
    async with running(refuse_with="close", **options) as server, raw_peer(server) as silent:
        assert await close_of(silent) == (4504, "auth_failed")
        assert await silent.ended() == b""


async def test_of_many_that_never_answer_the_oldest_go(monkeypatch):
    monkeypatch.setattr(loop, "MAX_REFUSED_LINKS", 2)
    async with (
        running(authenticator=nobody, refuse_with="close") as server,
        raw_peer(server) as first,
        raw_peer(server) as second,
    ):
        for client in (first, second):
            assert await close_of(client) == (4504, "auth_failed")
        async with raw_peer(server) as third:
            assert await first.ended() == b""
            assert await close_of(third) == (4504, "auth_failed")
            assert len(server._transport) == 2


async def test_those_that_have_left_are_not_among_them(monkeypatch):
    monkeypatch.setattr(loop, "MAX_REFUSED_LINKS", 2)
    async with (
        running(authenticator=nobody, refuse_with="close") as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            async with raw_peer(server) as client:
                assert await close_of(client) == (4504, "auth_failed")
            await eventually(lambda: len(server._transport) == 0)
        clients = []
        for _ in range(3):
            clients.append(await stack.enter_async_context(raw_peer(server)))
            assert await close_of(clients[-1]) == (4504, "auth_failed")

        assert await clients[0].ended() == b""
        assert len(server._transport) == 2


async def test_what_it_sent_with_the_handshake_is_thrown_away():
    async with serving(authenticator=nobody, refuse_with="close") as here:
        heard = []
        here.server.hub.on_message(lambda conn, raw: heard.append(raw))
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        client = Client(reader, writer)
        client.write(request() + masked("{}") + masked(b"\x03\xe8", 0x88))
        await client.answered()

        assert client.status == 101
        code = (4504).to_bytes(2, "big")
        assert await client.end() == bytes([0x88, 13]) + code + b"auth_failed"
        assert heard == []
        client.leave()


async def test_the_end_of_a_server_waits_for_none_of_them():
    heartbeat = HeartbeatConfig(write_wait=0.05)
    options = {"authenticator": nobody, "heartbeat": heartbeat}
    async with running(refuse_with="close", **options) as server, raw_peer(server) as silent:
        await server.shutdown(timeout=0)

        assert len(server._transport) == 0
        assert await silent.ended()


async def test_a_client_that_is_gone_meanwhile_is_counted_all_the_same():
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(handshake):
        asked.set()
        await go_on.wait()

    async with serving(authenticator=slow, refuse_with="close") as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(request())
        await asked.wait()
        client = Client(reader, writer)
        client.abort()
        go_on.set()

        await eventually(lambda: here.server.hub.stats().refused == {"unauthorized": 1})
        assert len(here.server._transport) == 0


# --- how it is said


@pytest.mark.parametrize("wrong", ["closed", "HTTP", "", None, True, 401, ["close"]])
def test_a_wrong_value_is_told_where_the_server_is_built(wrong):
    with pytest.raises(ValueError, match="refuse_with must be 'http' or 'close', not"):
        Server(refuse_with=wrong)


async def test_the_test_kit_notices_a_wrong_value_too():
    with pytest.raises(ValueError, match="refuse_with"):
        async with TestHub(Server(), refuse_with="closed"):
            pass


async def test_in_the_settings_it_has_the_same_words():
    assert Settings().refuse_with == "http"
    settings = Settings.load(environ={"EYEWALL_REFUSE_WITH": "Close"})
    assert settings.refuse_with == "close"
    server = Server.from_settings(settings, authenticator=nobody)
    async with running(server), raw_peer(server) as client:
        assert await close_of(client) == (4504, "auth_failed")
    with pytest.raises(SettingsError, match="refuse_with: expected one of http, close, not '401'"):
        Settings.load(environ={"EYEWALL_REFUSE_WITH": "401"})


@pytest.mark.parametrize("said", ["http", "close"])
async def test_the_test_kit_raises_what_the_authenticator_raised(said):
    """A handler's test does not depend on how a client would be told."""
    server = Server(authenticator=nobody, refuse_with=said)
    async with TestHub(server) as th:
        with pytest.raises(Unauthorized):
            await th.connect(token="wrong")
        assert th.clients == []
        assert (await th.connect(meta=ConnMeta(user_id="ada"))).closed is None
