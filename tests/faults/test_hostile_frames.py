"""Frames that break RFC 6455 or a limit on it: the right close, and nobody else notices."""

from __future__ import annotations

import json

import pytest

from tests.faults.clients import CLOSE, PING, TEXT, Crowd, Peer, framed
from tests.faults.hostile import DEFLATE, deflated, ended, flooded, fragment, unharmed

HELLO = json.dumps({"id": "1", "topic": "work:echo", "data": "hello", "ack": True}).encode()

BROKEN = {
    "an unmasked frame": b"\x81\x05hello",
    "the first reserved bit, unasked": fragment(HELLO, 0xC1),
    "the second reserved bit": fragment(HELLO, 0xA1),
    "the third reserved bit": fragment(HELLO, 0x91),
    "an unknown opcode": fragment(HELLO, 0x83),
    "a continuation of nothing": fragment(HELLO),
    "a message within a message": fragment(HELLO, 0x01) + framed(HELLO),
    "a control frame in fragments": fragment(b"x", PING),
    "a control frame that is too long": framed(b"x" * 126, PING),
}


def told(hub, data: bytes, **fields: str):
    """What the close frame says to who sends this."""
    with unharmed(hub):
        peer = Peer.connect(hub.port, fields=fields)
        peer.write(data)
        return ended(peer)


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_frame_that_breaks_the_protocol_is_the_last(hub, data):
    assert told(hub, data) == (1002, "protocol_error")


@pytest.mark.parametrize(
    "data",
    [
        fragment(b"x", 0x80 | 0x40 | PING),
        fragment(deflated(b"\x03\xe8"), 0x80 | 0x40 | CLOSE),
        fragment(deflated(b"x"), 0x41) + fragment(b"", 0xC0),
        fragment(b"\xff" * 100, 0xC1),
        fragment(b"\x01\x00\x00\xff\xff" * 100, 0xC1),
    ],
    ids=[
        "a ping",
        "a close",
        "a continuation",
        "no deflate data",
        "a hundred final blocks",
    ],
)
def test_what_must_not_be_compressed_or_is_not_ends_with_1002(hub, data):
    assert told(hub, data, **DEFLATE) == (1002, "protocol_error")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x03",
        *(code.to_bytes(2, "big") for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999)),
        *(code.to_bytes(2, "big") for code in (5000, 65535)),
    ],
    ids=lambda payload: str(int.from_bytes(payload, "big")),
)
def test_a_close_code_that_must_not_be_sent_ends_with_1002(hub, payload):
    assert told(hub, framed(payload, CLOSE)) == (1002, "protocol_error")


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (fragment(b"", TEXT), fragment(b"")),
        (fragment(b"", 0x40 | TEXT), fragment(b"")),
        (fragment(b"x", TEXT), fragment(b"x")),
    ],
    ids=["empty", "empty, compressed", "of one byte"],
)
def test_endless_fragments_end_with_1008(hub, first, more):
    with unharmed(hub) as witness:
        peer = Peer.connect(hub.port, fields=DEFLATE)
        peer.write(first)
        witness.is_answered()
        flooded(peer, more * 1000, lambda: peer.end)

        assert peer.closed == (1008, "policy_violation")


@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 32, (1 << 63) - 1])
def test_a_frame_that_announces_too_much_ends_before_it_comes(hub, size):
    data = b"\x81\xff" + size.to_bytes(8, "big") + b"mask"
    assert told(hub, data) == (1009, "message_too_big")


def test_fragments_that_are_too_much_together_end_with_1009(hub):
    with unharmed(hub):
        peer = Peer.connect(hub.port)
        peer.write(fragment(b"x" * 1000, TEXT))
        flooded(peer, fragment(b"x" * 100_000), lambda: peer.end)

        assert peer.closed == (1009, "message_too_big")


def test_a_ping_between_the_fragments_of_a_compressed_message_is_answered(hub):
    """And the message arrives: control frames are no part of it."""
    data = deflated(HELLO)
    with unharmed(hub):
        peer = Peer.connect(hub.port, fields=DEFLATE)
        with Crowd([peer]) as crowd:
            peer.write(fragment(data[:10], 0x40 | TEXT) + framed(b"now", PING))
            crowd.until(lambda: peer.pongs, "the pong")
            assert hub.ask("held")["begun"] == 1
            peer.write(fragment(data[10:20]) + framed(b"again", PING) + fragment(data[20:], 0x80))
            crowd.until(lambda: peer.answers, "the answer")

            assert peer.pongs == [b"now", b"again"]
            assert peer.messages[0]["data"]["echo"] == "hello"
            assert peer.closed is None


def test_a_flood_of_pings_ends_with_1008(hub):
    """Every pong is read here: who reads none is ended by what it does not read."""
    with unharmed(hub):
        peer = Peer.connect(hub.port)
        flooded(peer, framed(b"x" * 125, PING) * 100, lambda: peer.end)

        assert peer.closed == (1008, "policy_violation")


def test_what_comes_after_a_close_is_not_even_looked_at(hub):
    """No answer, no error: the other side has said that it is done."""
    with unharmed(hub):
        peer = Peer.connect(hub.port)
        peer.write(framed(b"\x03\xe8", CLOSE) + framed(HELLO) * 1000 + b"\xff" * 1000)

        assert ended(peer) == (1000, "")
        assert peer.messages == []
        assert peer.end == "eof"
