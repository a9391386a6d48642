"""permessage-deflate with clients that others wrote, through the whole hub."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import websockets
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
)

from eyewall import CompressionConfig, Envelope, Server
from tests.certificate import tls_contexts
from tests.entrypoints.wire_clients import JSON, MSGPACK, PATIENCE, running, talking

pytestmark = pytest.mark.usefixtures("transport")

ON = CompressionConfig()

TEXTS = ["", "x", "hé", "a word " * 5, "a word " * 500, "x" * 300_000, os.urandom(50_000).hex()]


@contextlib.asynccontextmanager
async def echoing(**options: Any) -> AsyncIterator[Server]:
    async with running(compression=ON, **options) as server:

        @server.hub.on_message
        async def echo(conn: Any, raw: str | bytes) -> bool:
            await conn.send_raw(raw)
            return True

        yield server


def agreed(socket: websockets.ClientConnection) -> PerMessageDeflate | None:
    found = socket.protocol.extensions
    assert len(found) <= 1
    return found[0] if found else None  # type: ignore[return-value]


async def test_it_is_off_by_default():
    async with running() as server, websockets.connect(server.url) as socket:
        assert agreed(socket) is None


@pytest.mark.parametrize("wrong", [True, 1, {"level": 6}, "deflate"])
def test_what_is_no_config_is_refused(wrong):
    with pytest.raises(ValueError, match="compression"):
        Server(compression=wrong)


async def test_neither_side_keeps_a_window():
    async with running(compression=ON) as server, websockets.connect(server.url) as socket:
        deflate = agreed(socket)
        assert deflate is not None
        assert deflate.remote_no_context_takeover
        assert deflate.local_no_context_takeover


async def test_websockets_sends_and_reads_whatever_it_likes():
    async with echoing() as server, websockets.connect(server.url) as socket:
        for text in TEXTS:
            await socket.send(text)
            assert await socket.recv() == text
            await socket.send(text.encode())
            assert await socket.recv() == text.encode()


async def test_what_compression_does_not_make_smaller_comes_back_as_it_was():
    noise = os.urandom(50_000)
    async with echoing() as server:
        async with websockets.connect(server.url) as socket:
            await socket.send(noise)
            assert await socket.recv() == noise
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(server.url, compress=15, ssl=tls_contexts()[1]) as other,
        ):
            await other.send_bytes(noise)
            assert await other.receive_bytes(timeout=PATIENCE) == noise


async def test_small_texts_that_shrink_not_come_back_as_they_were():
    """A thousand in a row, some compressed by the client, none by the server."""
    texts = [os.urandom(8).hex() for _ in range(1000)]
    async with echoing() as server, websockets.connect(server.url) as socket:
        for text in texts:
            await socket.send(text)
            assert await socket.recv() == text


async def test_websockets_fragments_a_compressed_message():
    async with echoing() as server, websockets.connect(server.url) as socket:
        await socket.send(["one " * 100, "", "two " * 100, "three"])
        await socket.ping()

        assert await socket.recv() == "one " * 100 + "two " * 100 + "three"


@pytest.mark.parametrize(
    ("options", "deflates"),
    [
        ({}, True),
        ({"server_no_context_takeover": True}, True),
        ({"client_no_context_takeover": True}, True),
        ({"client_max_window_bits": 9}, True),
        ({"client_max_window_bits": 15, "server_max_window_bits": 15}, True),
        ({"server_max_window_bits": 14}, False),
    ],
    ids=str,
)
async def test_websockets_offers(options, deflates):
    factory = ClientPerMessageDeflateFactory(**options)
    async with (
        echoing() as server,
        websockets.connect(server.url, compression=None, extensions=[factory]) as socket,
    ):
        assert (agreed(socket) is not None) is deflates
        await socket.send("words and words " * 100)
        assert await socket.recv() == "words and words " * 100


@pytest.mark.parametrize(("window", "deflates"), [(9, False), (12, False), (15, True)])
async def test_aiohttp_sends_and_reads_whatever_it_likes(window, deflates):
    """It insists on the same window at both ends: below 15 it is served without."""
    async with (
        echoing() as server,
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url, compress=window, ssl=tls_contexts()[1]) as socket,
    ):
        assert bool(socket.compress) is deflates
        for text in TEXTS:
            await socket.send_str(text)
            assert await socket.receive_str(timeout=PATIENCE) == text
            await socket.send_bytes(text.encode())
            assert await socket.receive_bytes(timeout=PATIENCE) == text.encode()


async def test_over_tls():
    context, trusting = tls_contexts()
    server = Server(compression=ON)

    @server.hub.on_message
    async def echo(conn: Any, raw: str | bytes) -> bool:
        await conn.send_raw(raw)
        return True

    await server.start(port=0, ssl=context)
    try:
        assert isinstance(trusting, ssl.SSLContext)
        async with websockets.connect(
            server.url.replace("127.0.0.1", "localhost"), ssl=trusting
        ) as socket:
            assert agreed(socket) is not None
            for text in TEXTS:
                await socket.send(text)
                assert await socket.recv() == text
    finally:
        await server.shutdown(1)


async def test_a_message_larger_than_the_limit_closes_with_1009():
    async with echoing(max_message_size=10_000) as server, websockets.connect(server.url) as socket:
        await socket.send("x" * 10_000)
        assert await socket.recv() == "x" * 10_000

        await socket.send("x" * 10_001)

        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (1009, "message_too_big")


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
async def test_envelopes_of_both_codecs_compressed(codec):
    async with running(compression=ON) as server:

        @server.on("echo")
        async def echo(ctx: Any, msg: Envelope) -> Any:
            return msg.data

        async with talking(server, codec, compression="deflate") as client:
            assert agreed(client.socket) is not None
            for text in TEXTS:
                answer = await client.ask("echo", {"text": text}, id=f"m{len(text)}")
                assert answer["text"] == text


async def test_a_room_of_four_kinds_of_members():
    """Both codecs, with and without compression."""
    async with running(compression=ON) as server, contextlib.AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(talking(server, codec, compression=compression))
            for codec in (JSON, MSGPACK)
            for compression in (None, "deflate")
        ]
        for member in members:
            await member.ask("system:join", {"room": "r"})
        for sender in members:
            for text in ("short", "long " * 500):
                await sender.send("system:publish", {"room": "r", "data": {"text": text}})
                for member in members:
                    assert (await member.receive())["data"] == {"text": text}


async def test_what_a_member_gets_is_compressed_from_the_threshold_on():
    """Counted in bytes on the wire, by a client that looks at its frames."""
    sizes: list[tuple[bool, int]] = []

    class Looking(PerMessageDeflate):
        def decode(self, frame: Any, **options: Any) -> Any:
            if frame.opcode in (1, 2):
                sizes.append((frame.rsv1, len(frame.data)))
            return super().decode(frame, **options)

    class Factory(ClientPerMessageDeflateFactory):
        def process_response_params(self, *args: Any) -> PerMessageDeflate:
            super().process_response_params(*args)
            return Looking(
                remote_no_context_takeover=True,
                local_no_context_takeover=True,
                remote_max_window_bits=15,
                local_max_window_bits=15,
            )

    async with (
        running(compression=CompressionConfig(threshold=1000)) as server,
        websockets.connect(server.url, compression=None, extensions=[Factory()]) as socket,
    ):
        (conn,) = server.hub.connections()
        for size in (999, 1000):
            await conn.send_raw("x" * size)
            await socket.recv()

    assert sizes[0] == (False, 999)
    assert sizes[1][0] is True
    assert sizes[1][1] < 100


async def test_settings_turn_it_on(monkeypatch):
    monkeypatch.setenv("EYEWALL_COMPRESSION__ENABLED", "true")
    monkeypatch.setenv("EYEWALL_COMPRESSION__THRESHOLD", "64")
    server = Server.from_settings()
    await server.start(port=0)
    try:
        async with websockets.connect(server.url) as socket:
            assert agreed(socket) is not None
            await socket.send(json.dumps({"topic": "t", "data": "x" * 1000}))
            assert "handler_not_found" in str(await socket.recv())
    finally:
        await server.shutdown(1)


async def test_msgpack_payloads_stay_byte_for_byte_when_compressed():
    odd = b"\xdc\x03\xe8" + b"\xcd\x00\x01" * 1000  # a thousand times 1, said at length
    message = b"\x82\xa5topic\xaesystem:publish\xa4data\x82\xa4room\xa1r\xa4data" + odd
    async with (
        running(compression=ON) as server,
        talking(server, compression="deflate") as one,
        talking(server, compression="deflate") as other,
    ):
        await one.ask("system:join", {"room": "r"})
        await other.ask("system:join", {"room": "r"})

        await one.socket.send(message)

        frame = await other.raw()
        fields = msgspec.msgpack.decode(frame, type=dict[str, msgspec.Raw])
        assert bytes(fields["data"]) == odd
