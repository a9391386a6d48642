"""Messages that are well framed and mean no good: bombs, nests, lies about a length, floods."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from tests.faults.clients import BINARY, TEXT, Crowd, Peer, framed
from tests.faults.hostile import (
    DEFLATE,
    GROWTH,
    MSGPACK,
    deflated,
    ended,
    fragment,
    unharmed,
)
from tests.faults.support import MIB

DEEP = 100_000
FULL = MIB - 200
"""Bytes of payload that just fit into a message, with its envelope."""


def answers(
    hub: Any, data: bytes, count: int, fields: dict[str, str], growth: int = GROWTH
) -> Counter[str]:
    """The codes of the answers to what is sent, and to a last request that is a good one."""
    with (
        unharmed(hub, growth) as witness,
        Crowd([Peer.connect(hub.port, fields=fields)]) as crowd,
    ):
        (peer,) = crowd
        peer.write(data)
        witness.is_answered()
        good = {"id": "good", "topic": "work:echo", "ack": True}
        if fields is MSGPACK:
            peer.write(framed(msgspec.msgpack.encode(good), BINARY))
        else:
            peer.send(**good)
        crowd.until(
            lambda: peer.messages and peer.messages[-1].get("ref") == "good",
            "the answer to the good one",
        )
        found = [m["data"] for m in peer.messages if m["topic"] != "system:welcome"]
        assert len(found) == count + 1
        return Counter(data.get("code", "ok") for data in found)


# --- compressed


@pytest.mark.parametrize("size", [2 * MIB, 100 * MIB])
def test_a_decompression_bomb_ends_with_1009_and_is_never_there_as_a_whole(hub, size):
    bomb = deflated(*[bytes(MIB)] * (size // MIB))
    with unharmed(hub) as witness:
        peers = [Peer.connect(hub.port, fields=DEFLATE) for _ in range(10)]
        for peer in peers:
            peer.write(fragment(bomb, 0xC0 | TEXT))
        witness.is_answered()

        assert [ended(peer) for peer in peers] == [(1009, "message_too_big")] * 10


def test_many_messages_that_are_large_ones_inflated_leave_the_others_their_turns(hub):
    """Each of them is allowed: 1 MiB, sent as 1 KiB, two hundred times in a go."""
    blank = deflated(b'{"id": "1", "topic": "nowhere"}', b" " * FULL)
    codes = answers(hub, fragment(blank, 0xC0 | TEXT) * 200, 200, DEFLATE)

    assert codes == {"handler_not_found": 200, "ok": 1}


# --- JSON


def nested(opening: bytes, closing: bytes, depth: int = DEEP) -> bytes:
    return b'{"id": "1", "topic": "work:echo", "data": %b}' % (opening * depth + closing * depth)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (nested(b"[", b"]"), "invalid_envelope"),
        (nested(b'{"a":', b"}").replace(b'"a":}', b'"a":0}'), "invalid_envelope"),
        (nested(b"[", b"]", FULL // 2), "invalid_envelope"),
        (nested(b"[", b"", FULL), "invalid_envelope"),
        (b"[" * MIB, "invalid_envelope"),
        (b"{" * MIB, "invalid_json"),
        (b'{"topic": "a", "data": [%b]}' % (b"[]," * (FULL // 3) + b"[]"), "handler_not_found"),
        (b'{"topic": "a", "data": "%b"}' % (b"[" * FULL), "handler_not_found"),
        (b'{"topic": "a", "data": %b}' % (b"9" * FULL), "handler_not_found"),
        (b'{"topic": "work:echo", "data": "%b}' % (b'\\"' * (FULL // 2)), "invalid_json"),
    ],
    ids=[
        "arrays",
        "objects",
        "half a million arrays",
        "arrays that never close",
        "nothing but brackets",
        "nothing but braces",
        "flat, but full of brackets",
        "brackets in a text",
        "a number of a million digits",
        "a text that never ends",
    ],
)
def test_hostile_json_is_answered_and_the_connection_stays(hub, payload, code):
    assert answers(hub, framed(payload) * 5, 5, {}) == {code: 5, "ok": 1}


# --- MessagePack


def packed(data: bytes) -> bytes:
    head = b"\x83\xa2id\xa11\xa5topic\xa1a\xa4data"
    return head + data


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (packed(b"\x91" * DEEP + b"\xc0"), "invalid_envelope"),
        (packed(b"\x81\xa1a" * DEEP + b"\xc0"), "invalid_envelope"),
        (packed(b"\x91" * FULL + b"\xc0"), "invalid_envelope"),
        (packed(b"\xdd\xff\xff\xff\xff"), "invalid_json"),
        (packed(b"\xdf\xff\xff\xff\xff"), "invalid_json"),
        (packed(b"\xdb\xff\xff\xff\xff"), "invalid_json"),
        (packed(b"\xc6\xff\xff\xff\xff"), "invalid_json"),
        (packed(b"\xdd\xff\xff\xff\xff" * 60), "invalid_json"),
        (b"\xdf\xff\xff\xff\xff" * 10_000, "invalid_envelope"),
        (packed(b"\xdd" + FULL.to_bytes(4, "big") + b"\x90" * FULL), "handler_not_found"),
        (packed(b"\xdd" + FULL.to_bytes(4, "big") + b"\x80" * FULL), "handler_not_found"),
    ],
    ids=[
        "arrays",
        "maps",
        "a million arrays",
        "an array of four billion",
        "a map of four billion",
        "a text of four billion",
        "bytes, four billion",
        "arrays of four billion in one another",
        "nothing but maps of four billion",
        "flat, but full of arrays",
        "flat, but full of maps",
    ],
)
def test_hostile_messagepack_is_answered_and_the_connection_stays(hub, payload, code):
    assert answers(hub, framed(payload, BINARY) * 5, 5, MSGPACK) == {code: 5, "ok": 1}


def test_as_many_containers_as_fit_are_looked_into_one_message_at_a_time(hub):
    """Each byte of such a message becomes some 45 while it is looked into."""
    payload = packed(b"\xdd" + (FULL // 2).to_bytes(4, "big") + b"\x91\xc0" * (FULL // 2))
    codes = answers(hub, framed(payload, BINARY) * 3, 3, MSGPACK, growth=64 * MIB)

    assert codes == {"handler_not_found": 3, "ok": 1}


# --- many


@pytest.mark.parametrize("payload", [b"", b"{}"], ids=["empty", "no topic"])
def test_a_flood_of_tiny_messages_is_answered_one_by_one(hub, payload):
    """A read of 64 KiB holds thousands of them; each gets its error."""
    tiny, count = framed(payload), 20_000
    with unharmed(hub) as witness, Crowd([Peer.connect(hub.port)]) as crowd:
        (peer,) = crowd
        before = witness.answered
        peer.write(tiny * count)
        crowd.until(lambda: len(peer.messages) == count, "the answers")

        assert witness.answered > before
        codes = Counter(message["data"]["code"] for message in peer.messages)
        assert codes == {"invalid_envelope" if payload else "invalid_json": count}


def test_a_flood_of_tiny_messages_whose_answers_nobody_reads_stands_still(hub):
    """The sender is not read any further, and the server holds what fits a queue."""
    with unharmed(hub) as witness:
        rss = hub.rss
        peer = Peer.connect(hub.port, buffer=4096)
        sent = 0
        while peer.flush():
            peer.write(framed(b"{}") * 1000)
            sent += 1000
            assert sent < 5_000_000
        witness.is_answered()

        assert hub.ask("held")["queued"] < MIB
        assert hub.rss - rss < GROWTH
        peer.close()
