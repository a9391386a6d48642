"""protocol.md, "Handshake": who gets which answer, with its headers."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest

from eyewall import Server, Unauthorized
from tests.entrypoints.wire import (
    UNIT,
    UPGRADE,
    Response,
    eventually,
    peer,
    raw_peer,
    running,
)

pytestmark = pytest.mark.usefixtures("transport")


async def answer_to(server: Server, path: str = "/ws", method: str = "GET", **changes) -> Response:
    """The server's answer to a handshake with these headers changed."""
    async with raw_peer(server, upgrade=False) as client:
        return await client.get(path, method, **changes)


# --- the handshake


async def test_an_upgrade_is_answered_as_the_rfc_says():
    async with running() as server:
        answer = await answer_to(server)

    key = str(UPGRADE["Sec-WebSocket-Key"]) + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    assert answer.status == 101
    assert answer.headers["upgrade"].lower() == "websocket"
    assert answer.headers["connection"].lower() == "upgrade"
    assert answer.headers["sec-websocket-accept"] == (
        base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    )
    assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.parametrize(
    "changes",
    [
        {"Connection": "keep-alive, Upgrade"},
        {"Upgrade": "WebSocket"},
        {"Connection": "upgrade"},
    ],
)
async def test_header_values_are_read_as_browsers_write_them(changes):
    async with running() as server:
        assert (await answer_to(server, **changes)).status == 101


async def test_a_foreign_origin_gets_403():
    async with running() as server:
        assert (await answer_to(server, Origin="http://evil.example")).status == 403


async def test_an_opaque_origin_gets_403():
    """A sandboxed frame says ``null``; it is not the same origin."""
    async with running() as server:
        assert (await answer_to(server, Origin="null")).status == 403


async def test_the_same_origin_is_let_in():
    async with running() as server:
        origin = f"http://127.0.0.1:{server.port}"
        assert (await answer_to(server, Origin=origin)).status == 101


async def test_the_same_host_on_another_port_is_another_origin():
    async with running() as server:
        assert (await answer_to(server, Origin="http://127.0.0.1:1")).status == 403


async def test_nobody_without_a_user_gets_401():
    async with running(authenticator=lambda handshake: None) as server:
        assert (await answer_to(server)).status == 401


async def test_an_authenticator_that_raises_unauthorized_gets_401():
    def refuse(handshake):
        raise Unauthorized("no such token")

    async with running(authenticator=refuse) as server:
        assert (await answer_to(server)).status == 401


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
async def test_a_limit_of_connections_gets_503_and_when_to_come_back(limit):
    async with running(**{limit: 1}) as server, peer(server):
        answer = await answer_to(server)

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_place_is_free_again_after_a_leave():
    async with running(max_connections=1) as server:
        async with peer(server):
            assert (await answer_to(server)).status == 503
        await eventually(lambda: not server.hub.connection_ids())

        assert (await answer_to(server)).status == 101


async def test_a_draining_server_gets_503_and_when_to_come_back():
    server = Server()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @server.on("work")
    async def work(ctx, msg):
        begun.set()
        await go_on.wait()

    async with running(server), peer(server) as client, raw_peer(server, upgrade=False) as late:
        await client.send("work")
        await begun.wait()
        stopping = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
        await client.expect("system:draining", "draining")

        answer = await late.get()

        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        go_on.set()
        await stopping


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": None},
        {"Connection": None},
        {"Connection": "keep-alive"},
        {"Upgrade": "h2c"},
        {"Upgrade": None, "Connection": None},
        {"Sec_WebSocket_Version": "8"},
        {"Sec_WebSocket_Version": "14"},
        {"Sec_WebSocket_Version": None},
        {"Sec_WebSocket_Version": "thirteen"},
    ],
    ids=str,
)
async def test_what_is_no_upgrade_to_version_13_gets_426(changes):
    async with running() as server:
        answer = await answer_to(server, **changes)

    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"
    assert answer.headers["upgrade"].lower() == "websocket"


@pytest.mark.parametrize("key", [None, "", "short", "!" * 24, base64.b64encode(b"x" * 15).decode()])
async def test_an_upgrade_without_a_valid_key_gets_400(key):
    async with running() as server:
        answer = await answer_to(server, Sec_WebSocket_Key=key)

    assert answer.status == 400


async def test_a_handshake_that_is_not_finished_in_time_is_cut():
    async with (
        running(handshake_timeout=0.2 * UNIT) as server,
        raw_peer(server, upgrade=False) as client,
    ):
        await client.write(b"GET /ws HTTP/1.1\r\nHost: x\r\n")

        assert await client.ended() == b""


async def test_a_handshake_whose_authentication_hangs_is_cut():
    """The time runs from the connect to the 101, whatever it is spent on."""

    async def hang(handshake):
        await asyncio.Event().wait()

    async with (
        running(authenticator=hang, handshake_timeout=0.2 * UNIT) as server,
        raw_peer(server, upgrade=False) as client,
    ):
        head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        await client.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())

        assert b" 101 " not in await client.ended()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_only_a_get_can_be_an_upgrade(method):
    """RFC 6455, 4.1: whatever else comes is no upgrade, also with all of its headers."""
    async with running() as server:
        answer = await answer_to(server, method=method)

    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"
