"""What a client sends, without a socket."""

from __future__ import annotations

import gc
import random
import tracemalloc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.adapters.web.protocol import parser as reading
from eyewall.adapters.web.protocol.parser import Parser, ProtocolError
from eyewall.domain.connection import DisconnectReason as Reason
from tests.adapters.web.support import CLOSE, PING, PONG, TEXT, header, masked

LIMIT = 1000


def read(data: bytes, *, limit: int = LIMIT) -> tuple[list[reading.Event], ProtocolError | None]:
    """Return all events of ``data`` in one chunk, and the violation."""
    return read_cut([data], limit=limit)


def read_cut(chunks, *, limit: int = LIMIT) -> tuple[list[reading.Event], ProtocolError | None]:
    parser = Parser(limit)
    events: list[reading.Event] = []
    for chunk in chunks:
        events += parser.feed(chunk)
        while parser.has_more:
            events += parser.feed()
    return events, parser.failure


# --- the client's frames


def test_whole_messages_of_every_length_form():
    for size in (0, 1, 125, 126, 65535, 65536):
        events, failure = read(masked(b"x" * size), limit=1 << 20)
        assert (events, failure) == ([(TEXT, b"x" * size)], None)


def test_control_frames_may_stand_between_fragments():
    data = masked("fr", 0x01) + masked("p", 0x89) + masked("ag", 0x00) + masked("q", 0x8A)

    events, failure = read(data + masked("ment", 0x80))

    assert events == [(PING, b"p"), (PONG, b"q"), (TEXT, b"fragment")]
    assert failure is None


def test_a_character_may_be_cut_by_fragments():
    euro = "€".encode()
    data = masked(euro[:1], 0x01) + masked(euro[1:2], 0x00) + masked(euro[2:], 0x80)

    assert read(data) == ([(TEXT, euro)], None)


def test_what_follows_a_close_frame_is_ignored():
    events, failure = read(masked(b"\x03\xe8", 0x88) + b"\xff" * 50)

    assert events == [(CLOSE, b"\x03\xe8")]
    assert failure is None


BAD = {
    "unmasked": (b"\x81\x02hi", Reason.PROTOCOL_ERROR),
    "unmasked and empty": (b"\x81\x00", Reason.PROTOCOL_ERROR),
    "rsv1": (masked("x", 0xC1), Reason.PROTOCOL_ERROR),
    "rsv2": (masked("x", 0xA1), Reason.PROTOCOL_ERROR),
    "rsv3": (masked("x", 0x91), Reason.PROTOCOL_ERROR),
    "rsv on a ping": (masked("x", 0xC9), Reason.PROTOCOL_ERROR),
    "unknown opcode": (masked("x", 0x83), Reason.PROTOCOL_ERROR),
    "unknown control opcode": (masked("x", 0x8B), Reason.PROTOCOL_ERROR),
    "long ping": (masked(b"x" * 126, 0x89), Reason.PROTOCOL_ERROR),
    "long ping, header only": (b"\x89\xfe", Reason.PROTOCOL_ERROR),
    "fragmented ping": (masked("", 0x09), Reason.PROTOCOL_ERROR),
    "continuation of nothing": (masked("x", 0x80), Reason.PROTOCOL_ERROR),
    "text within text": (masked("x", 0x01) + masked("y", 0x81), Reason.PROTOCOL_ERROR),
    "binary within text": (masked("x", 0x01) + masked("y", 0x82), Reason.PROTOCOL_ERROR),
    "64-bit length, top bit": (b"\x82\xff\x80" + b"\0" * 11, Reason.PROTOCOL_ERROR),
    "close of one byte": (masked(b"\x03", 0x88), Reason.PROTOCOL_ERROR),
    "close with 0": (masked(b"\x00\x00", 0x88), Reason.PROTOCOL_ERROR),
    "close with 999": (masked((999).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close with 1004": (masked((1004).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close with 1005": (masked((1005).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close with 1006": (masked((1006).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close with 1015": (masked((1015).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close with 2999": (masked((2999).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close with 5000": (masked((5000).to_bytes(2, "big"), 0x88), Reason.PROTOCOL_ERROR),
    "close reason": (masked(b"\x03\xe8\xff", 0x88), Reason.INVALID_UTF8),
    "text": (masked(b"\xff\xfe"), Reason.INVALID_UTF8),
    "text cut short": (masked("€".encode()[:2]), Reason.INVALID_UTF8),
    "surrogate": (masked(b"\xed\xa0\x80"), Reason.INVALID_UTF8),
    "fragment": (masked(b"ok", 0x01) + masked(b"\xff", 0x00), Reason.INVALID_UTF8),
    "fragments cut short": (masked(b"\xe2\x82", 0x01) + masked(b"", 0x80), Reason.INVALID_UTF8),
    "too big, 16 bits": (header(LIMIT + 1), Reason.MESSAGE_TOO_BIG),
    "too big, 64 bits": (header(1 << 40), Reason.MESSAGE_TOO_BIG),
    "fragments too big": (masked(b"x" * 900, 0x01) + header(101, 0x00), Reason.MESSAGE_TOO_BIG),
    "too many empty continuations": (
        masked("x", 0x01) + masked("", 0x00) * (reading.MAX_EMPTY_FRAGMENTS + 1),
        Reason.POLICY_VIOLATION,
    ),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_a_bad_frame_is_named_after_the_good_ones_before_it(data, reason):
    events, failure = read(masked("good") + data)

    assert events == [(TEXT, b"good")]
    assert failure is not None
    assert failure.reason is reason


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999])
def test_close_codes_that_may_be_sent(code):
    payload = code.to_bytes(2, "big") + "tschüß".encode()

    assert read(masked(payload, 0x88)) == ([(CLOSE, payload)], None)


def test_a_message_may_not_come_in_more_fragments_than_its_size_needs():
    most = reading.MAX_FRAGMENTS
    fragments = masked("x", 0x01) + masked("x", 0x00) * (most - 1)
    assert read(fragments, limit=most * 2) == ([], None)

    _, failure = read(fragments + masked("x", 0x00), limit=most * 2)

    assert failure is not None
    assert failure.reason is Reason.POLICY_VIOLATION


def test_a_large_message_may_come_in_many_fragments():
    count = 4096
    part = b"x" * reading.MIN_MEAN_FRAGMENT
    data = masked(part, 0x01) + masked(part, 0x00) * (count - 2) + masked(part, 0x80)

    events, failure = read(data, limit=count * len(part))

    assert failure is None
    assert events == [(TEXT, part * count)]


def test_one_call_gives_no_more_than_its_limit_and_the_rest_in_order():
    data = b"".join(masked(str(i)) for i in range(100))
    parser = Parser(LIMIT)

    slices = [parser.feed(data)]
    while parser.has_more:
        slices.append(parser.feed())

    assert [len(events) for events in slices] == [32, 32, 32, 4]
    assert [payload for events in slices for _, payload in events] == [
        b"%d" % i for i in range(100)
    ]
    assert parser.idle


def test_an_idle_parser_holds_nothing_and_a_busy_one_says_so():
    parser = Parser(LIMIT)
    assert parser.idle
    parser.feed(masked("hello")[:-1])
    assert not parser.idle
    parser.feed(masked("hello")[-1:])
    assert parser.idle
    parser.feed(masked("hello", 0x01))
    assert not parser.idle
    parser.feed(masked("hello", 0x80))
    assert parser.idle


def test_a_long_frame_in_small_chunks_is_not_copied_for_each_of_them():
    size = 1 << 20
    data = masked(b"x" * size)
    parser = Parser(size)
    parser.feed(data[:1000])
    tracemalloc.start()
    for at in range(1000, size - 1000, 1000):
        parser.feed(data[at : at + 1000])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * size  # a bytearray that grows; concatenation would copy, not grow

    events = parser.feed(data[at + 1000 :])

    assert events == [(TEXT, b"x" * size)]


class Work:
    """What was being made of the bytes when they turned out to be bad."""


@pytest.mark.parametrize("broken", [False, True])
def test_a_violation_does_not_keep_what_it_was_found_in(broken):
    """A bomb's inflated part would wait for the garbage collector."""
    made = []

    def inflate(data):
        work = Work()
        made.append(weakref.ref(work))
        if broken:
            raise ValueError
        raise ProtocolError(Reason.MESSAGE_TOO_BIG, "a bomb")

    def inflate_within(data):
        try:
            return inflate(data)
        except ValueError:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "no data") from None

    parser = Parser(LIMIT, inflate_within)
    gc.disable()
    try:
        parser.feed(masked("x", 0xC1))
        assert parser.failure is not None
        assert made[0]() is None
    finally:
        gc.enable()


# --- however the bytes are cut


texts = st.text(max_size=200).map(lambda text: masked(text))
binaries = st.binary(max_size=300).map(lambda data: masked(data, 0x82))
pings = st.binary(max_size=125).map(lambda data: masked(data, 0x89))
large = st.integers(5000, 9000).map(lambda size: masked(b"x" * size))
fragmented = st.lists(st.text(max_size=20), min_size=2, max_size=5).map(
    lambda parts: b"".join(
        [
            masked(parts[0], 0x01),
            *(masked(part, 0x00) for part in parts[1:-1]),
            masked(parts[-1], 0x80),
        ]
    )
)
bad = st.sampled_from([data for data, _ in BAD.values()])
streams = st.lists(texts | binaries | pings | fragmented | large, max_size=8).flatmap(
    lambda good: (bad | st.binary(max_size=30) | st.just(b"")).map(lambda end: b"".join(good) + end)
)


def outcome(chunks):
    events, failure = read_cut(chunks, limit=8000)
    return events, failure and (failure.reason, str(failure))


@settings(max_examples=300, deadline=None)
@given(streams, st.integers(1, 50), st.randoms(use_true_random=False))
def test_the_events_are_the_same_however_the_bytes_are_cut(data, mean, rng: random.Random):
    chunks = []
    at = 0
    while at < len(data):
        size = rng.randint(1, mean * 2)
        chunks.append(data[at : at + size])
        at += size

    assert outcome(chunks) == outcome([data])


def test_the_events_are_the_same_byte_by_byte():
    for bad_data, _ in BAD.values():
        data = masked("héllo") + bad_data
        assert outcome([bytes((b,)) for b in data]) == outcome([data])
