"""Compression: what goes out is shared, what comes in is bounded."""

from __future__ import annotations

import gc
import os
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.adapters.web.protocol import parser as reading
from eyewall.adapters.web.protocol.deflate import (
    INFLATE_SIZE,
    INPUT_SIZE,
    MAX_FINAL_BLOCKS,
    RATIO_EXEMPT_BYTES,
    CompressionConfig,
    DeflateFormat,
    Inflater,
)
from eyewall.adapters.web.protocol.frames import PlainFormat, build_frame
from eyewall.adapters.web.protocol.parser import Parser, ProtocolError
from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.outbox import QueueConfig
from tests.adapters.web.support import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Client,
    PlainCodec,
    header,
    masked,
    raw,
    served,
    until,
)

LIMIT = 4 << 20
MIB = 1 << 20
OFFER = {"Sec_WebSocket_Extensions": "permessage-deflate"}
CONFIG = CompressionConfig()
INFLATER = Inflater(LIMIT, 100.0)


def deflate(data: bytes | str, *, level: int = 6, final: bool = False) -> bytes:
    """Compress as a client does: flushed, and without the flush's tail."""
    data = data.encode() if isinstance(data, str) else data
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15)
    if final:
        return deflater.compress(data) + deflater.flush(zlib.Z_FINISH)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def bomb(size: int) -> bytes:
    """Return what inflates to ``size`` zeros, at the best ratio there is."""
    many, rest = divmod(size, 16 * MIB)
    # A full flush forgets what came before: what ends with one can be said again.
    whole = _zeros(16 * MIB, zlib.Z_FULL_FLUSH) * many if many else b""
    return (whole + (_zeros(rest, zlib.Z_SYNC_FLUSH) if rest else b""))[:-4]


def _zeros(size: int, flush: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(bytes(size)) + deflater.flush(flush)


def compressed(data: bytes | str, first: int = 0xC1) -> bytes:
    return masked(deflate(data), first)


def read(*chunks: bytes, limit: int = LIMIT, ratio: float | None = 100.0):
    """Return all events, and the reason of the violation."""
    parser = Parser(limit, Inflater(limit, ratio).inflate)
    events: list[reading.Event] = []
    for chunk in chunks:
        events += parser.feed(chunk)
        while parser.has_more:
            events += parser.feed()
    return events, parser.failure and parser.failure.reason


def refused(data: bytes, inflater: Inflater = INFLATER) -> Reason:
    with pytest.raises(ProtocolError) as caught:
        inflater.inflate(data)
    return caught.value.reason


# --- the options


def test_the_defaults_are_what_api_md_says():
    assert (CONFIG.threshold, CONFIG.level) == (256, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": -1},
        {"threshold": 1.5},
        {"threshold": True},
        {"level": 0},
        {"level": 10},
        {"level": "6"},
        {"mem_level": 0},
        {"mem_level": 10},
        {"max_ratio": 0.5},
        {"max_ratio": float("nan")},
        {"max_ratio": "100"},
        {"max_ratio": True},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_where_it_is_built(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CompressionConfig(**wrong)


def test_the_ends_of_the_ranges_are_right():
    least = CompressionConfig(threshold=0, level=1, mem_level=1, max_ratio=1)
    most = CompressionConfig(level=9, mem_level=9, max_ratio=None)

    assert (least.threshold, least.level, least.mem_level, least.max_ratio) == (0, 1, 1, 1)
    assert (most.level, most.mem_level, most.max_ratio) == (9, 9, None)


# --- what goes out


class Counting(PlainFormat):
    def __init__(self) -> None:
        super().__init__(PlainCodec())
        self.built = 0

    def build(self, frame: EncodedMessage) -> bytes:
        self.built += 1
        return super().build(frame)


def wire(**options) -> DeflateFormat:
    return DeflateFormat(PlainFormat(PlainCodec()), CompressionConfig(**options))


def test_a_wire_has_a_name_of_its_own():
    assert wire().name == "json+deflate"
    assert wire().name != PlainFormat(PlainCodec()).name


@pytest.mark.parametrize("size", [300, 5000, 70_000])
@pytest.mark.parametrize("binary", [False, True])
def test_a_message_is_compressed_and_marked(size, binary):
    text = b"all work and no play " * (size // 21)

    form = wire().build(raw(text, binary=binary))

    assert form[0] == 0x80 | 0x40 | (BINARY if binary else TEXT)
    assert len(form) < len(text)
    events, failure = read(as_client(form))
    assert (events, failure) == ([(BINARY if binary else TEXT, text)], None)


def as_client(frame: bytes) -> bytes:
    """Mask a server's frame."""
    start = 2 + {126: 2, 127: 8}.get(frame[1], 0)
    return masked(frame[start:], frame[0])


def test_below_the_threshold_nothing_is_compressed():
    text = b"x" * 255

    assert wire().build(raw(text)) == build_frame(text, TEXT)
    assert wire().build(raw(text + b"x"))[0] == 0xC1


def test_what_gets_no_smaller_goes_as_it_is():
    noise = os.urandom(1000)

    assert wire(threshold=0).build(raw(noise, binary=True)) == build_frame(noise, BINARY)
    assert wire(threshold=0).build(raw(b"")) == build_frame(b"", TEXT)


def test_what_is_not_compressed_is_the_same_object_for_both_wires():
    plain = PlainFormat(PlainCodec())
    frame = raw(b"short")

    assert frame.for_wire(DeflateFormat(plain, CONFIG)) is frame.for_wire(plain)


def test_the_level_is_what_zlib_is_asked_for():
    text = b" ".join(b"%d" % (n * n) for n in range(3000))

    fast, small = (wire(level=level).build(raw(text)) for level in (1, 9))

    assert len(fast) > len(small)


def test_a_message_is_encoded_and_compressed_once_for_all():
    plain = Counting()
    deflated = DeflateFormat(plain, CONFIG)
    frame = raw(b"x" * 1000)

    forms = {id(frame.addressed(str(n)).for_wire(deflated)) for n in range(100)}
    frame.for_wire(plain)

    assert len(forms) == 1
    assert plain.built == 1


# --- what comes in


@given(st.binary(max_size=5000), st.integers(1, 9), st.booleans())
def test_inflating_gives_back_what_was_deflated(data, level, final):
    assert INFLATER.inflate(deflate(data, level=level, final=final)) == data


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_what_we_send_any_client_can_inflate(parts, repeat):
    data = b"".join(parts) * (50 if repeat else 1)
    form = wire(threshold=0).build(raw(data, binary=True))

    assert read(as_client(form)) == ([(BINARY, data)], None)


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        INPUT_SIZE - 1,
        INPUT_SIZE,
        INFLATE_SIZE - 1,
        INFLATE_SIZE,
        INFLATE_SIZE + 1,
        3 * INFLATE_SIZE,
    ],
)
@pytest.mark.parametrize("byte", [None, b"\0"])
def test_sizes_around_the_steps(size, byte):
    data = os.urandom(size) if byte is None else byte * size

    assert INFLATER.inflate(deflate(data)) == data


def test_an_empty_message_is_one_octet():
    """RFC 7692, 7.2.3.6."""
    assert INFLATER.inflate(b"\x00") == b""


def test_the_examples_of_the_rfc():
    """RFC 7692, 7.2.3: compressed, uncompressed, with a final block, in two blocks."""
    for example in (
        "f248cdc9c90700",
        "000500faff48656c6c6f00",
        "f348cdc9c9070000",
        "f24805000000ffffcac9c90700",
    ):
        assert INFLATER.inflate(bytes.fromhex(example)) == b"Hello"


def test_a_final_block_may_be_followed_by_more():
    data = deflate("one ", final=True) + deflate("two ", final=True) + deflate("three")

    assert INFLATER.inflate(data) == b"one two three"


def test_final_blocks_are_bounded_because_each_costs_an_inflater():
    final = deflate("", final=True)
    assert INFLATER.inflate(final * MAX_FINAL_BLOCKS + deflate("x")) == b"x"

    assert refused(final * 400_000) is Reason.PROTOCOL_ERROR


BROKEN = {
    "nothing at all": b"",
    "an unknown kind of block": b"\xff\xff\xff",
    "cut off": deflate("hello " * 50)[:-3],
    "cut off in a stored block": deflate(os.urandom(100))[:-20],
    "noise": b"\x06\x12\x99" * 50,
    "a distance before the beginning": bytes.fromhex("4b04a2"),
    "the tail left on": deflate("hello") + b"\x00\x00\xff\xff",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_data_that_can_not_be_inflated_is_a_protocol_error(data):
    assert refused(data) is Reason.PROTOCOL_ERROR


def test_a_message_may_inflate_to_its_limit_and_not_to_one_byte_more():
    inflater = Inflater(100_000, None)
    assert inflater.inflate(deflate(b"x" * 100_000)) == b"x" * 100_000

    assert refused(deflate(b"x" * 100_001), inflater) is Reason.MESSAGE_TOO_BIG


@pytest.mark.parametrize("data", [b"\0", None], ids=["one that shrinks", "one that grows"])
def test_a_message_of_the_largest_size_passes_compressed(data):
    whole = os.urandom(MIB) if data is None else data * MIB

    events, failure = read(compressed(whole, 0xC2), limit=MIB)

    assert failure is None
    assert events == [(BINARY, whole)]


def test_a_bomb_takes_no_more_memory_than_a_message_may():
    """1 MiB that would inflate to 1 GiB."""
    data = bomb(1 << 30)
    assert len(data) < 1.1 * MIB
    inflater = Inflater(8 * MIB, None)
    gc.collect()
    tracemalloc.start()

    reason = refused(data, inflater)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason is Reason.MESSAGE_TOO_BIG
    assert peak < 9 * MIB


def test_beyond_the_first_mib_the_ratio_is_bounded():
    inflater = Inflater(LIMIT, 100.0)
    assert inflater.inflate(bomb(RATIO_EXEMPT_BYTES)) == bytes(RATIO_EXEMPT_BYTES)

    assert refused(bomb(RATIO_EXEMPT_BYTES + INFLATE_SIZE), inflater) is Reason.MESSAGE_TOO_BIG
    assert Inflater(LIMIT, None).inflate(bomb(RATIO_EXEMPT_BYTES + INFLATE_SIZE)) == bytes(
        RATIO_EXEMPT_BYTES + INFLATE_SIZE
    )


def test_a_large_message_of_a_common_ratio_passes():
    text = b"".join(b'{"id": %d, "name": "visitor", "online": true},' % n for n in range(60_000))
    assert len(text) > 2 * RATIO_EXEMPT_BYTES

    assert INFLATER.inflate(deflate(text)) == text


def test_the_ratio_is_one_of_the_whole_message():
    """However well its beginning shrinks."""
    data = bytes(2 * RATIO_EXEMPT_BYTES) + os.urandom(100_000)

    assert INFLATER.inflate(deflate(data)) == data


# --- in frames


def test_a_compressed_message_in_one_frame():
    assert read(compressed("héllo " * 99)) == ([(TEXT, "héllo ".encode() * 99)], None)
    assert read(compressed(b"\xff\xfe", 0xC2)) == ([(BINARY, b"\xff\xfe")], None)


def test_compressed_and_plain_messages_may_alternate():
    data = compressed("one") + masked("two") + compressed("three")

    assert read(data) == ([(TEXT, b"one"), (TEXT, b"two"), (TEXT, b"three")], None)


def test_fragments_of_a_compressed_message_with_a_ping_between():
    data = deflate("fragmented " * 20)
    frames = masked(data[:5], 0x41) + masked("p", 0x89) + masked("", 0x00) + masked(data[5:], 0x80)

    assert read(frames) == ([(PING, b"p"), (TEXT, b"fragmented " * 20)], None)


def test_text_is_checked_after_it_was_inflated():
    assert read(compressed(b"ok \xff")) == ([], Reason.INVALID_UTF8)
    data = deflate("€".encode()[:2])
    assert read(masked(data[:2], 0x41) + masked(data[2:], 0x80)) == ([], Reason.INVALID_UTF8)


BAD = {
    "a compressed ping": (masked(deflate("x"), 0xC9), Reason.PROTOCOL_ERROR),
    "a compressed close": (masked(deflate(b"\x03\xe8"), 0xC8), Reason.PROTOCOL_ERROR),
    "rsv1 on a continuation": (
        masked(deflate("x"), 0x41) + masked("", 0xC0),
        Reason.PROTOCOL_ERROR,
    ),
    "rsv1 on a continuation of a plain one": (
        masked("x", 0x01) + masked(deflate("x"), 0xC0),
        Reason.PROTOCOL_ERROR,
    ),
    "rsv2": (masked("x", 0xA1), Reason.PROTOCOL_ERROR),
    "rsv3": (masked("x", 0x91), Reason.PROTOCOL_ERROR),
    "rsv1 and rsv2": (masked("x", 0xE1), Reason.PROTOCOL_ERROR),
    "rsv1 and rsv3": (masked("x", 0xD2), Reason.PROTOCOL_ERROR),
    "rsv1 on an unknown opcode": (masked("x", 0xC3), Reason.PROTOCOL_ERROR),
    "broken data": (masked(b"\xff\xff", 0xC1), Reason.PROTOCOL_ERROR),
    "broken fragments": (masked(b"\xff", 0x41) + masked(b"\xff", 0x80), Reason.PROTOCOL_ERROR),
    "not utf-8": (compressed(b"\xff"), Reason.INVALID_UTF8),
    "inflates to too much": (masked(bomb(2 * MIB), 0xC2), Reason.MESSAGE_TOO_BIG),
    "announces too much": (header(2 * MIB, 0xC2), Reason.MESSAGE_TOO_BIG),
    "fragments announce too much": (
        masked(b"x" * 1000, 0x42) + header(2 * MIB, 0x80),
        Reason.MESSAGE_TOO_BIG,
    ),
    "endless empty fragments": (
        masked(deflate("x"), 0x41) + masked("", 0x00) * (reading.MAX_EMPTY_FRAGMENTS + 1),
        Reason.POLICY_VIOLATION,
    ),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named_after_the_good_messages_before_it(data, reason):
    events, failure = read(compressed("good") + data, limit=MIB)

    assert (events[:1], failure) == ([(TEXT, b"good")], reason)
    assert len(events) == 1


def test_many_small_bombs_in_one_chunk_are_not_held_all_at_once():
    data = masked(bomb(200_000), 0xC2) * 30
    parser = Parser(LIMIT, INFLATER.inflate)

    slices = [parser.feed(data)]
    while parser.has_more:
        slices.append(parser.feed())

    assert [len(events) for events in slices] == [1] * 30
    assert parser.idle


good = (
    st.text(max_size=200).map(compressed)
    | st.binary(max_size=200).map(lambda data: compressed(data, 0xC2))
    | st.text(max_size=50).map(masked)
    | st.binary(max_size=125).map(lambda data: masked(data, 0x89))
    | st.tuples(st.text(max_size=100), st.integers(0, 20)).map(
        lambda made: (
            masked(deflate(made[0])[: made[1]], 0x41)
            + masked("ping", 0x89)
            + masked(deflate(made[0])[made[1] :], 0x80)
        )
    )
)
streams = st.tuples(
    st.lists(good, max_size=6),
    st.sampled_from([data for data, _ in BAD.values()]) | st.binary(max_size=30) | st.just(b""),
).map(lambda made: b"".join(made[0]) + made[1])


@settings(max_examples=200, deadline=None)
@given(streams, st.integers(1, 50), st.randoms(use_true_random=False))
def test_the_events_are_the_same_however_the_bytes_are_cut(data, mean, rng: random.Random):
    chunks, at = [], 0
    while at < len(data):
        size = rng.randint(1, mean * 2)
        chunks.append(data[at : at + size])
        at += size

    assert read(*chunks, limit=8000) == read(data, limit=8000)


# --- on a socket


async def rsv_frame(client: Client) -> tuple[int, bytes]:
    """Return the first byte and payload of the next frame."""
    first = (await client.reader.readexactly(1))[0]
    size = (await client.reader.readexactly(1))[0]
    if size == 126:
        size = int.from_bytes(await client.reader.readexactly(2), "big")
    return first, await client.reader.readexactly(size)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_message_goes_both_ways_compressed(tls):
    text = "to and fro " * 100
    async with served(compression=CONFIG, tls=tls) as here:
        client, _ = await here.pair(**OFFER)

        client.write(compressed(text))
        first, payload = await rsv_frame(client)

        assert first == 0xC1
        assert INFLATER.inflate(payload) == text.encode()


async def test_a_room_of_both_kinds_gets_each_message_in_its_own_form():
    text = "for everybody " * 100
    async with served(compression=CONFIG) as here:
        deflating, one = await here.pair(**OFFER)
        plain, other = await here.pair()
        room = here.sockets.outbound.new_group()
        room.add(one)
        room.add(other)

        room.broadcast(raw(text))

        assert await plain.text() == text
        first, payload = await rsv_frame(deflating)
        assert first == 0xC1
        assert INFLATER.inflate(payload) == text.encode()


async def test_what_waited_for_a_slow_peer_is_compressed_too():
    texts = [f"{n} " + os.urandom(4096).hex() for n in range(300)]
    async with served(compression=CONFIG, queue=QueueConfig(size=1000)) as here:
        client, link = await here.pair(small=True, **OFFER)
        client.pause()
        for text in texts:
            link.send(raw(text))
        await until(lambda: link.queued > 10)
        client.resume()

        for text in texts:
            first, payload = await rsv_frame(client)
            assert (first, INFLATER.inflate(payload)) == (0xC1, text.encode())


async def test_without_the_offer_a_compressed_message_is_a_protocol_error():
    async with served(compression=CONFIG) as here:
        client = await here.connect()

        client.write(compressed("x" * 1000))

        assert await client.closed() == (1002, "protocol_error")


async def test_while_compression_is_off_no_offer_is_answered():
    async with served() as here:
        client = await here.connect(**OFFER)
        assert "sec-websocket-extensions" not in client.fields

        client.write(compressed("x" * 1000))

        assert await client.closed() == (1002, "protocol_error")


async def test_a_client_that_insists_on_a_small_window_is_served_without():
    offer = {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=10"}
    async with served(compression=CONFIG) as here:
        client = await here.connect(**offer)
        assert "sec-websocket-extensions" not in client.fields

        client.send("plain " * 100)

        assert await client.text() == "plain " * 100


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (masked(b"\xff\xff", 0xC1), 1002, "protocol_error"),
        (compressed(b"\xff\xff"), 1007, "invalid_utf8"),
        (masked(bomb(64 * MIB), 0xC2), 1009, "message_too_big"),
    ],
    ids=["broken", "not utf-8", "bomb"],
)
async def test_what_can_not_be_read_closes_with_its_code(data, code, text):
    async with served(compression=CONFIG) as here:
        client = await here.connect(**OFFER)

        client.write(data)

        assert await client.closed() == (code, text)


async def test_an_idle_connection_holds_nothing_of_zlib():
    async with served(compression=CONFIG) as here:
        client, link = await here.pair(**OFFER)
        client.write(compressed("x" * 1000))
        await rsv_frame(client)

        assert link._parser is None
        assert link.wire is (await here.pair(**OFFER))[1].wire


async def test_one_that_waits_for_its_next_fragment_holds_no_inflater():
    async with served(compression=CONFIG) as here:
        client, link = await here.pair(**OFFER)
        client.write(masked(deflate("x" * 1000)[:4], 0x41))
        await until(lambda: link._parser is not None)

        message = link._parser._message
        inflaters = type(zlib.decompressobj())
        assert not [held for held in gc.get_referents(message) if isinstance(held, inflaters)]
        assert len(message.data) == 4


async def test_a_ping_between_compressed_fragments_is_answered():
    data = deflate("in pieces " * 100)
    async with served(compression=CONFIG) as here:
        client = await here.connect(**OFFER)
        client.write(masked(data[:3], 0x41))
        client.write(masked("now", 0x89))
        assert await client.frame() == (PONG, b"now")

        client.write(masked(data[3:], 0x80))

        first, payload = await rsv_frame(client)
        assert (first, INFLATER.inflate(payload)) == (0xC1, b"in pieces " * 100)
