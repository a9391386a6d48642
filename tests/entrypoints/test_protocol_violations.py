"""protocol.md, "Close codes": what a client may not do, and the code that it gets for it."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from eyewall import (
    DisconnectReason,
    Forbidden,
    Server,
)
from tests.entrypoints.wire import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    WITHIN,
    frame,
    peer,
    raw_peer,
    running,
)

pytestmark = pytest.mark.usefixtures("transport")


def recording(server: Server) -> list[DisconnectReason]:
    """The reasons that ``on_disconnect`` hooks get."""
    reasons: list[DisconnectReason] = []

    @server.hub.on_disconnect
    async def note(conn, reason):
        reasons.append(reason)

    return reasons


# --- 1002 and 1007: violations of RFC 6455

VIOLATIONS = {
    "an unmasked frame": frame(TEXT, b"{}", mask=False),
    "reserved bit 1": frame(TEXT, b"{}", rsv=4),
    "reserved bit 2": frame(TEXT, b"{}", rsv=2),
    "reserved bit 3": frame(TEXT, b"{}", rsv=1),
    "reserved data opcode": frame(3, b"{}"),
    "reserved control opcode": frame(11, b""),
    "a continuation of nothing": frame(0, b"{}"),
    "a message within a message": frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
    "a ping in fragments": frame(PING, b"x", fin=False),
    "a ping of 126 bytes": frame(PING, b"x" * 126),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "close code 999": frame(CLOSE, b"\x03\xe7"),
    "close code 1005": frame(CLOSE, b"\x03\xed"),
    "close code 1006": frame(CLOSE, b"\x03\xee"),
    "close code 1016": frame(CLOSE, b"\x03\xf8"),
    "close code 2999": frame(CLOSE, b"\x0b\xb7"),
    "close code 5000": frame(CLOSE, b"\x13\x88"),
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS)
async def test_a_violation_of_the_framing_ends_with_1002(data):
    server = Server()
    reasons = recording(server)
    async with running(server), raw_peer(server) as client:
        await client.write(data)

        assert (await client.read_frame()).close == (1002, "protocol_error")
        if data[0] != 0x80 | CLOSE:  # else it has closed already
            await client.write(frame(CLOSE, b"\x03\xea"))
        assert await client.ended() == b""
        assert reasons == [DisconnectReason.PROTOCOL_ERROR]


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b'{"topic": "\xff"}'),
        frame(TEXT, b'{"topic": "\xc3'),
        frame(TEXT, b'{"topic": "\xed\xa0\x80"}'),
        frame(TEXT, b'{"topic": "\xc3', fin=False) + frame(0, b'\x28"}'),
        frame(CLOSE, b"\x03\xe8\xff\xfe"),
    ],
    ids=["byte", "cut short", "surrogate", "in fragments", "close reason"],
)
async def test_invalid_utf8_ends_with_1007(data):
    async with running() as server, raw_peer(server) as client:
        await client.write(data)

        assert (await client.read_frame()).close == (1007, "invalid_utf8")


async def test_a_character_may_be_split_between_fragments():
    async with running() as server, raw_peer(server) as client:
        text = '{"topic": "é", "id": "1"}'.encode()
        middle = text.index(b"\xc3") + 1
        await client.write(frame(TEXT, text[:middle], fin=False) + frame(0, text[middle:]))

        assert (await client.read_envelope())["topic"] == "é"


# --- 1008


async def test_a_connect_hook_that_refuses_ends_with_1008():
    server = Server()
    reasons = recording(server)

    @server.hub.on_connect
    async def refuse(conn):
        raise Forbidden("not today")

    async with running(server), peer(server) as client:
        assert await client.closed() == (1008, "policy_violation")
        assert reasons == [DisconnectReason.POLICY_VIOLATION]


async def test_endless_empty_fragments_end_with_1008():
    async with running() as server, raw_peer(server) as client:
        await client.write(frame(TEXT, b"", fin=False))
        writing = asyncio.ensure_future(_flood(client, frame(0, b"", fin=False)))

        assert (await client.read_frame()).close == (1008, "policy_violation")
        writing.cancel()


async def test_a_flood_of_pings_whose_pongs_nobody_reads_ends_with_1008_or_is_paused():
    """Answers are not collected without an end: the client is cut off, or waits."""
    async with running() as server, raw_peer(server) as client:
        writing = asyncio.ensure_future(_flood(client, frame(PING, b"p" * 125)))
        try:
            found = await client.read_frame()
            async with asyncio.timeout(WITHIN):
                for _ in range(200_000):
                    if found.opcode == CLOSE:
                        assert found.close == (1008, "policy_violation")
                        return
                    found = await client.read_frame()
        finally:
            writing.cancel()
        assert server.hub.connection_ids(), "it was not closed for another reason"


async def _flood(client, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # over TLS it hears of the end at once
        while True:
            await client.write(data * 1000)


# --- 1009


async def test_a_message_of_exactly_the_limit_is_taken():
    async with running(max_message_size=1000) as server, peer(server) as client:
        text = json.dumps({"topic": "nowhere", "id": "1", "data": ""})
        await client.send_text(text[:-2] + "x" * (1000 - len(text)) + '"}')

        assert (await client.receive())["data"]["code"] == "handler_not_found"


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"x" * 1001),
        frame(BINARY, b"x" * 1001),
        frame(TEXT, b"x" * 600, fin=False) + frame(0, b"x" * 600),
        frame(TEXT, b"x" * 70_000)[:14],
        b"\x81\xff" + b"\x7f" + b"\xff" * 7 + b"mask",
    ],
    ids=["text", "binary", "in fragments", "only announced", "2**63 announced"],
)
async def test_a_message_over_the_limit_ends_with_1009(data):
    """Also before it has come, when its length is known."""
    server = Server(max_message_size=1000)
    reasons = recording(server)
    async with running(server), raw_peer(server) as client:
        await client.write(data)

        assert (await client.read_frame()).close == (1009, "message_too_big")
        assert reasons == [DisconnectReason.MESSAGE_TOO_BIG]
