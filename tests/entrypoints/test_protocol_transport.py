"""protocol.md, "Transport", "Handshake" and "Heartbeat", byte by byte where it counts."""

from __future__ import annotations

import asyncio
import json

import pytest

from eyewall import ConnMeta, HeartbeatConfig, Server, UserId
from tests.entrypoints.wire import (
    BINARY,
    JSON,
    PING,
    PONG,
    TEXT,
    UNIT,
    UPGRADE,
    Response,
    frame,
    peer,
    peers,
    raw_peer,
    running,
)

pytestmark = pytest.mark.usefixtures("transport")


async def echo(ctx, msg):
    return {"echo": msg.data}


async def answer_to(server: Server, path: str = "/ws", method: str = "GET", **changes) -> Response:
    """The server's answer to a handshake with these headers changed."""
    async with raw_peer(server, upgrade=False) as client:
        return await client.get(path, method, **changes)


# --- subprotocols


async def test_a_bare_socket_gets_json_and_no_welcome():
    async with running() as server, peer(server, session=False) as client:
        assert client.socket.subprotocol is None

        answer = await client.ask("nowhere")

        assert answer["ref"] == "q1", "the first thing that comes is the answer"


async def test_the_json_subprotocol_is_answered_and_welcomed():
    async with running() as server, peer(server) as client:
        assert client.socket.subprotocol == JSON
        assert client.welcome is not None
        assert client.welcome["topic"] == "system:welcome"
        assert client.welcome["event"] == "welcome"


@pytest.mark.parametrize("offered", ["chat, eyewall.v1.json", "eyewall.v9.json,eyewall.v1.json,x"])
async def test_the_first_known_one_of_several_offers_is_picked(offered):
    async with running() as server:
        answer = await answer_to(server, Sec_WebSocket_Protocol=offered)

    assert answer.status == 101
    assert answer.headers["sec-websocket-protocol"] == JSON


async def test_unknown_offers_are_answered_without_a_subprotocol():
    """Browsers then give up by themselves; the server lets the client in, unwelcomed."""
    async with running() as server, raw_peer(server, upgrade=False) as client:
        answer = await client.get(Sec_WebSocket_Protocol="chat, superchat")

        assert answer.status == 101
        assert "sec-websocket-protocol" not in answer.headers

        await client.write(frame(TEXT, b'{"topic": "nowhere", "id": "1"}'))
        assert (await client.read_envelope())["ref"] == "1"


async def test_the_welcome_says_who_the_client_is_and_what_the_server_allows():
    def known(handshake):
        return ConnMeta(user_id=UserId("ada"))

    heartbeat = HeartbeatConfig(interval=7.0, pong_timeout=21.0)
    options = {"node_id": "n1", "max_message_size": 4096, "heartbeat": heartbeat}
    async with running(authenticator=known, **options) as server, peer(server) as client:
        assert client.welcome is not None
        data = client.welcome["data"]

        assert set(data) == {
            *("conn_id", "user_id", "node_id", "session"),
            *("heartbeat", "max_message_size", "server"),
        }
        assert data["conn_id"] in server.hub.connection_ids()
        assert data["user_id"] == "ada"
        assert data["node_id"] == "n1"
        assert data["heartbeat"] == 7.0
        assert data["max_message_size"] == 4096
        assert isinstance(data["session"], str)
        assert data["session"]
        assert client.welcome["id"], "the server gives an id to what it originates"


async def test_nobody_knows_the_user_of_an_anonymous_welcome():
    async with running() as server, peer(server) as client:
        assert client.welcome is not None
        assert client.welcome["data"]["user_id"] is None


async def test_no_two_connections_share_an_id_or_a_session():
    async with running() as server, peers(server, 3) as clients:
        welcomes = [client.welcome["data"] for client in clients if client.welcome]

        assert len({data["conn_id"] for data in welcomes}) == 3
        assert len({data["session"] for data in welcomes}) == 3


async def test_the_welcome_comes_before_what_a_connect_hook_sends():
    """It is always the first message."""
    server = Server()

    @server.hub.on_connect
    async def greet(conn):
        await conn.send("greeting", "message", "hello")

    async with running(server), peer(server) as client:
        assert client.welcome is not None
        assert client.welcome["topic"] == "system:welcome"
        assert (await client.receive())["topic"] == "greeting"


# --- frames


async def test_the_server_writes_text_frames_under_json():
    server = Server()
    server.handle("echo", echo)
    async with running(server), raw_peer(server) as client:
        await client.write(frame(TEXT, b'{"topic": "echo", "id": "1", "ack": true, "data": 5}'))

        answer = await client.read_frame()

        assert answer.opcode == TEXT
        assert answer.fin
        assert json.loads(answer.payload)["data"]["echo"] == 5


async def test_a_message_may_come_in_fragments_with_a_ping_between():
    server = Server()
    server.handle("echo", echo)
    async with running(server), raw_peer(server) as client:
        await client.write(frame(TEXT, b'{"topic": "echo", ', fin=False))
        await client.write(frame(0, b'"id": "1", "ack"', fin=False))
        await client.write(frame(PING, b"now"))
        assert (await client.read_frame()).payload == b"now"
        await client.write(frame(0, b": true}"))

        assert (await client.read_envelope())["ref"] == "1"


async def test_a_message_may_come_byte_by_byte():
    server = Server()
    server.handle("echo", echo)
    async with running(server), raw_peer(server) as client:
        for byte in frame(TEXT, b'{"topic": "echo", "id": "1", "ack": true}'):
            await client.write(bytes([byte]))
            await asyncio.sleep(0)

        assert (await client.read_envelope())["ref"] == "1"


async def test_a_message_may_come_with_the_handshake():
    """A client in a hurry does not wait for the 101; what it sent is not lost."""
    server = Server()
    server.handle("echo", echo)
    async with running(server), raw_peer(server, upgrade=False) as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        request = f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{head}\r\n".encode()
        await client.write(request + frame(TEXT, b'{"topic": "echo", "id": "1", "ack": true}'))

        assert (await client.response()).status == 101
        assert (await client.read_envelope())["ref"] == "1"


async def test_a_binary_frame_under_json_is_refused_and_the_connection_stays():
    async with running() as server, peer(server) as client:
        await client.send_text(b'{"topic": "echo"}')

        refusal = await client.receive()

        assert refusal["event"] == "error"
        assert refusal["topic"] == "system:error"
        assert refusal["data"]["code"] == "unsupported_data"
        assert await client.before_fence() == []


async def test_a_hook_may_take_a_binary_frame():
    """It is refused unless an ``on_message`` hook took it first."""
    server = Server()
    seen = []

    @server.hub.on_message
    async def take(conn, raw):
        if isinstance(raw, bytes):
            seen.append(raw)
            return True
        return False

    async with running(server), peer(server) as client:
        await client.send_text(b"\x00\xff")

        assert await client.before_fence() == []
        assert seen == [b"\x00\xff"]


# --- heartbeat


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00\xff\xfe", b"p" * 125])
async def test_a_ping_is_answered_by_a_pong_with_the_same_bytes(payload):
    async with running() as server, raw_peer(server) as client:
        await client.write(frame(PING, payload))

        pong = await client.read_frame()

        assert (pong.opcode, pong.payload) == (PONG, payload)


async def test_pings_are_answered_in_order():
    async with running() as server, raw_peer(server) as client:
        await client.write(b"".join(frame(PING, b"%d" % n) for n in range(5)))

        pongs = [(await client.read_frame()).payload for _ in range(5)]

        assert pongs == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_server_pings_at_every_interval():
    heartbeat = HeartbeatConfig(interval=0.05, pong_timeout=5 * UNIT)
    async with running(heartbeat=heartbeat) as server, raw_peer(server) as client:
        for _ in range(3):
            ping = await client.read_frame()
            assert ping.opcode == PING
            await client.write(frame(PONG, ping.payload))


@pytest.mark.parametrize(
    "sign",
    [frame(PONG, b"unasked"), frame(PING, b"hello"), frame(TEXT, b"{}"), frame(BINARY, b"")],
    ids=["pong", "ping", "text", "binary"],
)
async def test_any_frame_counts_as_life(sign):
    """A client that never answers a ping stays, as long as something comes."""
    timeout = 1.2 * UNIT
    heartbeat = HeartbeatConfig(interval=timeout / 4, pong_timeout=timeout)
    async with running(heartbeat=heartbeat) as server, raw_peer(server) as client:
        for _ in range(12):  # half as long again as the timeout
            await client.write(sign)
            await asyncio.sleep(timeout / 8)

        assert len(server.hub.connection_ids()) == 1


async def test_silence_past_the_timeout_ends_the_connection():
    heartbeat = HeartbeatConfig(interval=0.05 * UNIT, pong_timeout=0.3 * UNIT)
    async with running(heartbeat=heartbeat) as server, raw_peer(server) as client:
        async with asyncio.timeout(5 * UNIT):
            while (found := await client.read_frame()).opcode == PING:
                pass

        assert found.close == (4408, "heartbeat_timeout")
