"""What to begin with: bytes that reach the odd paths, which chance would take long to."""

from __future__ import annotations

import json
import random
import zlib

import msgspec

from eyewall.application.cluster.packet import Packet
from tests.fuzz.frames import deflated, frame

NOISE = random.Random(7).randbytes(3000)
HELLO = b'{"topic":"chat","data":{"text":"h\xc3\xa9llo"}}'
NO_LIMIT = bytes((0, 0, 0))


def options(
    limit: int = 0, *, ratio: int = 0, script: bool = False, cut: int = 1, most: int = 0
) -> bytes:
    """The first bytes of a stream: see ``parser_target``."""
    return bytes((limit | ratio << 3 | script << 5, cut | most << 2, 1))


def cut_everywhere(stream: bytes, **chosen: int) -> dict[str, bytes]:
    words = ("byte-by-byte", "whole", "within-headers", "anywhere")
    return {word: options(cut=cut, **chosen) + stream for cut, word in enumerate(words)}


FRAGMENTED = (
    frame(0x01, "€".encode()[:1])
    + frame(0x89, b"between")
    + frame(0x00, "€".encode()[1:2])
    + frame(0x00, b"")
    + frame(0x8A, b"")
    + frame(0x80, "€".encode()[2:])
)
SQUEEZED = deflated(b"hello " * 40)
COMPRESSED = (
    frame(0xC1, SQUEEZED)
    + frame(0x41, SQUEEZED[:3])
    + frame(0x89, b"between")
    + frame(0x00, SQUEEZED[3:5])
    + frame(0x80, SQUEEZED[5:])
    + frame(0xC2, deflated(NOISE[:50], final=True))
    + frame(0x82, NOISE[:9])
)

PARSER = {
    **{f"fragments-{word}": data for word, data in cut_everywhere(FRAGMENTED).items()},
    **{f"compressed-{word}": d for word, d in cut_everywhere(COMPRESSED, ratio=1).items()},
    "compressed-without-offer": options() + COMPRESSED,
    "compressed-any-ratio": options(7, ratio=2) + frame(0xC2, deflated(bytes(1 << 20))),
    "too-small-a-ratio": options(7, ratio=1) + frame(0xC2, deflated(bytes((1 << 20) + 9))),
    "compressed-control": options(ratio=1) + frame(0xC9, b"\x00"),
    "compressed-continuation": options(ratio=1) + frame(0x41, b"") + frame(0xC0, b""),
    "compressed-no-utf8": options(ratio=1) + frame(0xC1, deflated(b"\xff")),
    "compressed-broken": options(ratio=1) + frame(0xC1, NOISE[:30]),
    "every-size": options(6) + b"".join(frame(0x82, bytes(n)) for n in (0, 1, 125, 126, 700)),
    "long-form-of-a-short-size": options() + b"\x81\xfe\x00\x01\0\0\0\0a\x81\xff" + bytes(12),
    "largest-size": options(6, cut=2) + frame(0x81, b"x" * 70)[:2] + b"\x82\xff" + b"\x80" * 12,
    "slow-large-frame": options(5, cut=3) + b"\x82\xfe\x17\x70\0\0\0\0" + bytes(4000),
    "too-big-16": options(0) + b"\x81\xfe\x03\xe9\0\0\0\0",
    "too-big-64": options(0) + b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4),
    "too-big-of-1": options(1) + frame(0x81, b"xy"),
    "fragments-too-big": options(2) + frame(0x01, bytes(100)) + frame(0x80, bytes(26)),
    "unmasked": options() + frame(0x81, b"good") + b"\x81\x02hi",
    "reserved-bits": options() + frame(0x81, b"good") + frame(0xA1, b"x"),
    "unknown-opcode": options() + frame(0x83, b"x"),
    "close-and-more": options(most=1) + frame(0x81, b"a") + frame(0x88, b"\x03\xe8ok") * 2,
    "close-byte-by-byte": options(cut=0) + frame(0x88, b"") + b"\x81",
    "close-of-one-byte": options() + frame(0x88, b"\x03"),
    "close-code-never-sent": options() + frame(0x88, b"\x03\xed"),
    "close-no-utf8": options() + frame(0x88, b"\x03\xe8\xff"),
    "ping-too-long": options() + frame(0x89, bytes(126)),
    "ping-fragmented": options() + frame(0x09, b""),
    "continuation-of-nothing": options() + frame(0x80, b"x"),
    "text-within-text": options() + frame(0x01, b"x") + frame(0x81, b"y"),
    "no-utf8": options() + frame(0x81, b"\xed\xa0\x80"),
    "fragment-no-utf8": options() + frame(0x01, b"ok") + frame(0x00, b"\xff"),
    "character-cut-off": options() + frame(0x01, b"\xe2\x82") + frame(0x80, b""),
    "many-messages": options(cut=1, most=3) + frame(0x81, b"") * 70 + b"\x81",
    "empty-fragments": options(script=True) + b"\x02\x01x\x04\xfe\x04\xf8\x04\xf9",
    "tiny-fragments": options(4, script=True) + b"\x02\x01x" + b"\x04\x01y" * 1030,
    "script": options(script=True, ratio=1) + b"\x00\x03abc\x02\x01x\x0a\x02pp\x05\x01y\x06\xe5abc",
}


def one_stream(*parts: bytes) -> bytes:
    return deflated(b"".join(parts))


def deflate(limit: int, data: bytes, *, ratio: int = 0, honest: int = 0) -> bytes:
    """The first byte: see ``deflate_target``."""
    return bytes((limit | ratio << 3 | honest,)) + data


DEFLATE = {
    "nothing": deflate(0, b""),
    "empty-message": deflate(0, b"\x00"),
    "rfc-compressed": deflate(0, bytes.fromhex("f248cdc9c90700")),
    "rfc-stored": deflate(0, bytes.fromhex("000500faff48656c6c6f00")),
    "rfc-final": deflate(0, bytes.fromhex("f348cdc9c9070000")),
    "rfc-two-blocks": deflate(0, bytes.fromhex("f24805000000ffffcac9c90700")),
    "final-without-octet": deflate(0, deflated(b"one", final=True)),
    "final-and-more": deflate(0, deflated(b"one", final=True) + deflated(b"two")),
    "final-and-tail": deflate(0, deflated(b"one", final=True) + b"\x00\x00\xff\xff"),
    "16-final-blocks": deflate(0, deflated(b"", final=True) * 16 + deflated(b"x")),
    "17-final-blocks": deflate(0, deflated(b"", final=True) * 17),
    "18-final-blocks": deflate(0, deflated(b"", final=True) * 18),
    "tail-left-on": deflate(0, SQUEEZED + b"\x00\x00\xff\xff"),
    "cut-off": deflate(0, deflated(HELLO)[:-5]),
    "cut-off-when-stored": deflate(0, deflated(NOISE[:60], level=0)[:-20]),
    "stored-and-short-of-a-tail": deflate(0, b"\x00\x05\x00\xfa\xffx"),
    "distance-too-far": deflate(0, bytes.fromhex("4b04a2")),
    "unknown-block": deflate(0, b"\xff\xff\xff"),
    "dynamic-codes": deflate(4, zlib.compress(bytes(range(256)) * 9)[2:-4]),
    "limit-reached": deflate(0, deflated(b"x" * 1000)),
    "limit-passed": deflate(0, deflated(b"x" * 1001)),
    "two-steps": deflate(4, deflated(b"x" * 140_000), ratio=1),
    "bomb": deflate(6, deflated(bytes(2 << 20))),
    "bomb-any-ratio": deflate(6, deflated(bytes(2 << 20)), ratio=1),
    "free-mib": deflate(6, deflated(bytes(1 << 20)), ratio=2),
    "beyond-the-free-mib": deflate(6, deflated(bytes((1 << 20) + 1)), ratio=2),
    "shrinks-only-at-first": deflate(6, one_stream(bytes(1 << 20), NOISE), ratio=0),
    "honest-text": deflate(5, HELLO, honest=32),
    "honest-noise": deflate(5, NOISE[:300], honest=32),
    "honest-repeated": deflate(5, NOISE[:200], honest=32 | 64),
    "honest-final": deflate(5, HELLO * 20, honest=32 | 128),
}


def json_with(data: str) -> bytes:
    return b'{"topic":"t","data":' + data.encode() + b"}"


FULL = {
    "topic": "room:général",
    "event": "said",
    "id": "m1",
    "ref": "r1",
    "namespace": "n",
    "version": "2",
    "data": {"a": [1, 2.5, None, True, "x"], "b": {}},
    "headers": {"trace": "1"},
    "ack": True,
    "stream": {"room": "r", "epoch": "e", "offset": 7},
}

JSON = {
    "full": json.dumps(FULL).encode(),
    "white-space": b' \t\r\n{ "topic" : "t" , "data" : [ 1 , 2 ] } \n',
    "no-topic": b'{"data":1}',
    "short-ack": b'{"event":"ack","ref":"m1"}',
    "ack-without-id": b'{"topic":"t","ack":true}',
    "not-an-object": b"[1]",
    "null-field": b'{"topic":"t","id":null}',
    "empty-fields": b'{"topic":"t","id":"","headers":{}}',
    "twice": b'{"topic":"a","topic":"b","data":1,"data":2}',
    "escaped-name": b'{"t\\u006fpic":"t","d\\u0061ta":1}',
    "unknown-fields": b'{"x":[{"topic":1}],"topic":"t"}',
    "large-number": json_with("123456789012345678901234567890"),
    "larger-number": json_with("1" + "0" * 4400),
    "no-number-holds-it": json_with("1e400"),
    "exact-fraction": json_with("1.10000000000000000000001e-5"),
    "minus-zero": json_with("-0.0"),
    "numbers-that-are-none": json_with("[01,1.,.5,+1,1e]"),
    "constants": json_with("[NaN,Infinity,-Infinity]"),
    "surrogate-pair": json_with('"\\ud83d\\ude00"'),
    "half-a-pair": json_with('"\\ud83d"'),
    "halves-in-the-wrong-order": json_with('"\\ude00\\ud83d"'),
    "half-a-pair-in-the-topic": b'{"topic":"\\ud83d","id":"x"}',
    "half-a-pair-in-a-key": b'{"topic":"t","\\ud83d":1}',
    "every-escape": json_with(r'"\"\\\/\b\f\n\r\t\u0000"'),
    "control-character": json_with('"\x01"'),
    "64-deep": json_with("[" * 63 + "]" * 63),
    "65-deep": json_with("[" * 64 + "]" * 64),
    "65-deep-in-unknown": b'{"topic":"t","x":' + b'{"a":' * 64 + b"1" + b"}" * 65,
    "2000-deep": json_with("[" * 2000),
    "brackets-in-a-text": json_with('"' + '[\\\\{\\"' * 40 + '"'),
    "shallow-brackets": json_with("[" + "[]," * 80 + "{}]"),
    "no-utf8": b'{"topic":"t","data":"\xff"}',
    "surrogate-as-utf8": b'{"topic":"t","data":"\xed\xa0\x80"}',
    "byte-order-mark": b'\xef\xbb\xbf{"topic":"t"}',
    "topic-of-256": json.dumps({"topic": "é" * 256}, ensure_ascii=False).encode(),
    "topic-of-257": json.dumps({"topic": "x" * 257}).encode(),
    "cut-off": b'{"topic":"t","data":[1,',
    "something-behind": b'{"topic":"t"}{}',
    "two-mistakes": b'{"topic":1,"data":tru}',
    "wrong-header": b'{"topic":"t","headers":{"a":1}}',
    "position-of-a-client": b'{"topic":"t","stream":{"room":"r","epoch":"e","offset":1.5}}',
}

PACK = msgspec.msgpack.encode


def packed_with(data: bytes) -> bytes:
    return b"\x82\xa5topic\xa1t\xa4data" + data


MSGPACK = {
    "full": PACK(FULL),
    "short-ack": PACK({"event": "ack", "ref": "m1"}),
    "ack-without-id": PACK({"topic": "t", "ack": True}),
    "nil-field": PACK({"topic": "t", "id": None}),
    "not-a-map": PACK([1]),
    "key-of-another-type": b"\x82\x01\x02\xa5topic\xa1t",
    "key-that-is-a-map": packed_with(b"\x81\x81\x01\x02\x03"),
    "key-that-is-an-array": packed_with(b"\x81\x91\x01\x02"),
    "twice": b"\x82\xa5topic\xa1a\xa5topic\xa1b",
    "long-forms": b"\xdf\0\0\0\x01\xdb\0\0\0\x05topic\xda\0\x01t",
    "binary": packed_with(b"\xc4\x01a"),
    "binary-topic": b"\x81\xa5topic\xc4\x01t",
    "extension": packed_with(b"\xd4\x05a"),
    "timestamp": packed_with(b"\xd6\xff\0\0\0\x01"),
    "timestamp-that-is-none": packed_with(b"\xd7\xff\xff\xff\xff\xff\0\0\0\x01"),
    "infinity": packed_with(b"\xca\x7f\x80\0\0"),
    "nan": packed_with(b"\xcb\x7f\xf8\0\0\0\0\0\0"),
    "every-number": packed_with(
        b"\x9a\x7f\xe0\xcc\xff\xcd\xff\xff\xce\xff\xff\xff\xff\xcf"
        + b"\xff" * 8
        + b"\xd0\x80\xd1\x80\0\xd2\x80\0\0\0\xd3\x80"
        + bytes(7)
    ),
    "floats": packed_with(b"\x92\xca\x3f\xc0\0\0\xcb\x3f\xf8\0\0\0\0\0\1"),
    "64-deep": packed_with(b"\x91" * 63 + b"\xc0"),
    "65-deep": packed_with(b"\x91" * 64 + b"\xc0"),
    "65-deep-and-no-utf8": packed_with(b"\x91" * 64 + b"\xa1\xff"),
    "65-deep-beside-no-utf8": b"\x83\xa1x\xa1\xff\xa5topic\xa1t\xa4data" + b"\x91" * 64 + b"\xc0",
    "2000-deep": packed_with(b"\x91" * 2000 + b"\xc0"),
    "2000-maps": packed_with(b"\x81\xa1a" * 1300 + b"\xc0"),
    "claims-much": packed_with(b"\xdd\xff\xff\xff\xff"),
    "claims-much-text": packed_with(b"\xdb\xff\xff\xff\xff"),
    "no-utf8": packed_with(b"\xa1\xff"),
    "no-utf8-topic": b"\x81\xa5topic\xa1\xff",
    "no-utf8-unread": b"\x82\xa1\xff\x01\xa5topic\xa1t",
    "never-used": packed_with(b"\xc1"),
    "something-behind": PACK({"topic": "t"}) + b"\xc0",
    "many-containers": packed_with(b"\xdc\0\x60" + b"\x90" * 96),
    "control-characters": packed_with(b"\xd9\x50" + bytes(80)),
    "position-of-a-client": PACK({"topic": "t", "stream": {"room": "r"}}),
}

ENVELOPE = {
    "made": b"\0\x04chat\x01\x02id\x01\x01r\0\0\x01\x01k\x01v\x01r\x01e\x07\x01\x04said\x08\x03"
    b"\x03\x07\x04\x02\x06\x02hi",
    "made-empty": b"\0",
    "made-of-halves": b"\0\x01\xff\0\0\0\0\0\0\0\0\0\0\x06\x01\xff",
    "made-without-end": b"\0\x04chat\0\0\0\0\0\0\0\0\0\0\x04\x06",
    "made-for-a-pattern": b"\0\x06chat:*\0\0\0\0\0\0\0\0\0\x06chat:x",
    **{f"json-{name}": b"\x01" + JSON[name] for name in ("full", "half-a-pair", "large-number")},
    "json-order": b"\x01" + json_with('{"name":"x","count":1,"tags":["a"],"parent":{"name":1}}'),
    "json-beyond-64-bits": b"\x01" + json_with('{"a":[1,18446744073709551616]}'),
    "json-beyond-any-float": b"\x01" + json_with('{"a":[1,1e400]}'),
    **{f"msgpack-{name}": b"\x02" + MSGPACK[name] for name in ("full", "binary", "every-number")},
    "packet": b"\x03" + Packet("n1", "pub", {"rooms": ["a"]}, b"payload").pack(),
    "packet-of-2000-levels": b"\x03\x01\0\0\x07\xd0" + b"[" * 2000,
    "packet-too-short": b"\x03\x01\0\0\0\xff{}",
    "packet-of-halves": b"\x03" + Packet("\ud800", "k", {}, b"").pack(),
}

SEEDS = {
    "parser": PARSER,
    "deflate": DEFLATE,
    "json": JSON,
    "msgpack": MSGPACK,
    "envelope": ENVELOPE,
}
