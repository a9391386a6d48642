"""However the bytes are cut, the parser gives the same events, each as soon as it is whole.

What a stream holds is told by ``tests.fuzz.reference``, which reads it in one piece.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eyewall.adapters.web.protocol.deflate import Inflater
from eyewall.adapters.web.protocol.parser import BYTEARRAY_SIZE, MAX_EMPTY_FRAGMENTS, Event, Parser
from tests.fuzz.frames import deflated, frame
from tests.fuzz.reference import CLOSE, expected

LIMIT = 3 * BYTEARRAY_SIZE // 2
RATIO = 100.0
NOISE = random.Random(5).randbytes(LIMIT)
"""It grows when it is compressed."""

Frames = list[bytes]

# --- streams, as lists of frames


def opcode_frames(first: int, payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[Frames]:
    return st.tuples(payloads, st.binary(min_size=4, max_size=4)).map(
        lambda made: [frame(first, made[0], made[1])]
    )


def in_fragments(message: bytes, first: int, cuts: list[int], controls: list[bytes]) -> Frames:
    """Cut a message in frames, and put a control frame behind each but the last."""
    cuts = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    parts = [message[a:b] for a, b in itertools.pairwise(cuts)]
    frames: Frames = []
    for at, part in enumerate(parts):
        opcode = first & 0x4F if at == 0 else 0
        frames.append(frame(opcode | (0x80 if at == len(parts) - 1 else 0), part))
        if at < len(parts) - 1 and controls:
            frames.append(controls[at % len(controls)])
    return frames


utf8 = st.text(max_size=150).map(str.encode)
some = st.binary(max_size=300)
large = st.integers(300, LIMIT).map(lambda size: b"\xc3\xa9" * (size // 2))
noise = st.integers(300, LIMIT).map(lambda size: NOISE[:size])
control = st.builds(
    frame, st.sampled_from([0x89, 0x8A]), st.binary(max_size=125), st.binary(min_size=4, max_size=4)
)
fragmented = st.builds(
    in_fragments,
    utf8 | large,
    st.sampled_from([0x81, 0x82]),
    st.lists(st.integers(0, 300), min_size=1, max_size=5),
    st.lists(control, max_size=3),
)
compressed_fragmented = st.builds(
    in_fragments,
    (utf8 | large).map(deflated),
    st.sampled_from([0xC1, 0xC2]),
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
    st.lists(control, max_size=3),
)
good: st.SearchStrategy[Frames] = st.one_of(
    opcode_frames(0x81, utf8 | large),
    opcode_frames(0x82, some | noise),
    opcode_frames(0xC1, (utf8 | large).map(deflated)),
    opcode_frames(0xC2, (some | noise).map(lambda data: deflated(data, final=True))),
    control.map(lambda made: [made]),
    fragmented,
    compressed_fragmented,
)

BAD: dict[str, Frames] = {
    "unmasked": [b"\x81\x02hi"],
    "a reserved bit": [frame(0xA1, b"x")],
    "an unknown opcode": [frame(0x83, b"x")],
    "a continuation of nothing": [frame(0x80, b"x")],
    "a message within a message": [frame(0x01, b"x"), frame(0x81, b"y")],
    "a control frame in fragments": [frame(0x09, b"")],
    "a long control frame": [frame(0x89, bytes(126))],
    "a compressed control frame": [frame(0xC9, b"\x00")],
    "a compressed continuation": [frame(0x41, b""), frame(0xC0, b"\x00")],
    "a close code that is never sent": [frame(0x88, b"\x03\xed")],
    "a close reason that is no UTF-8": [frame(0x88, b"\x03\xe8\xff")],
    "no UTF-8": [frame(0x81, b"\xed\xa0\x80")],
    "no UTF-8 in a fragment": [frame(0x01, b"ok"), frame(0x00, b"\xff"), frame(0x80, b"")],
    "no UTF-8 when inflated": [frame(0xC1, deflated(b"\xff"))],
    "a character that is cut off": [frame(0x01, b"\xe2\x82"), frame(0x80, b"")],
    "too large": [frame(0x82, bytes(LIMIT + 1))],
    "too large by 64 bits": [b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)],
    "a size with its top bit": [b"\x82\xff\x80" + bytes(11)],
    "too large in fragments": [frame(0x02, bytes(LIMIT)), frame(0x00, b"x")],
    "too large when inflated": [frame(0xC2, deflated(bytes(LIMIT + 1)))],
    "broken when inflated": [frame(0xC2, b"\xff\xff\xff")],
    "no end of empty fragments": [
        frame(0x01, b""),
        *[frame(0x00, b"")] * (MAX_EMPTY_FRAGMENTS + 1),
    ],
    "a close frame": [frame(0x88, b"\x03\xe8bye")],
}
LARGEST: dict[str, Frames] = {
    "plain": [frame(0x82, NOISE)],
    "in fragments": [frame(0x02, NOISE[:-1]), frame(0x00, b""), frame(0x80, NOISE[-1:])],
    "compressed": [frame(0xC2, deflated(NOISE, level=1))],
    "compressed in fragments": [
        frame(0x42, deflated(NOISE, level=1)[:-1]),
        frame(0x80, deflated(NOISE, level=1)[-1:]),
    ],
}
ending = st.one_of(
    st.sampled_from(list(BAD.values())), st.binary(max_size=30).map(lambda end: [end]), st.just([])
)
streams = st.tuples(st.lists(good, max_size=5), ending, st.lists(good, max_size=2)).map(
    lambda made: [one for frames in (*made[0], made[1], *made[2]) for one in frames]
)

# --- cuts, as sets of offsets


@st.composite
def cuts_of(draw: st.DrawFn, frames: Frames) -> set[int]:
    """Draw where a stream is cut: anywhere, around the frames' beginnings, within headers."""
    starts, at = [], 0
    for one in frames:
        starts.append(at)
        at += len(one)
    kind = draw(st.sampled_from(["anywhere", "octets", "headers", "starts"]))
    if kind == "octets":
        return set(range(1, at))
    if kind == "headers":
        return {start + within for start in starts for within in draw(st.sets(st.integers(1, 13)))}
    if kind == "starts":
        return {start + draw(st.integers(-2, 2)) for start in starts}
    return draw(st.sets(st.integers(1, max(1, at)), max_size=30))


cut_streams = streams.flatmap(lambda frames: st.tuples(st.just(frames), cuts_of(frames)))


def chunks(stream: bytes, cuts: set[int]) -> list[bytes]:
    inner = sorted(cut for cut in cuts if 0 < cut < len(stream))
    return [stream[a:b] for a, b in zip([0, *inner], [*inner, len(stream)], strict=True)]


def fed(parser: Parser, chunk: bytes) -> list[Event]:
    events = parser.feed(chunk)
    while parser.has_more:
        events += parser.feed()
    return events


def check(stream: bytes, cuts: set[int], *, deflate: bool) -> None:
    truth = expected(stream, LIMIT, deflate=RATIO if deflate else False)
    parser = Parser(LIMIT, Inflater(LIMIT, RATIO).inflate if deflate else None)
    events: list[Event] = []
    at = 0
    for chunk in chunks(stream, cuts):
        new = fed(parser, chunk)
        was_over = bool(events) and events[-1][0] == CLOSE
        assert not (new and was_over), "an event after a close frame"
        at += len(chunk)
        events += new
        assert events == truth.until(at)
        if parser.failure is not None:
            assert at >= truth.told
            assert parser.failure.reason in truth.failure
        else:
            assert not truth.failure or at < truth.due
    if parser.failure is not None:
        failure = parser.failure
        assert fed(parser, frame(0x81, b"more")) == []
        assert fed(parser, stream) == []
        assert parser.failure is failure


@settings(max_examples=300, deadline=None)
@given(cut_streams, st.booleans())
def test_any_stream_gives_the_same_events_however_it_is_cut(cut_stream, deflate):
    """Events come with the chunk that has their last octet; none comes after an error."""
    frames, cuts = cut_stream

    check(b"".join(frames), cuts, deflate=deflate)


@pytest.mark.parametrize("frames", [*BAD.values(), *LARGEST.values()], ids=[*BAD, *LARGEST])
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
def test_every_error_and_every_size_is_the_same_at_every_cut(frames, deflate):
    """Between two messages; cut once at each of the first octets, then at all."""
    stream = b"".join([frame(0x81, b"good"), *frames, frame(0x81, b"seen if it may be")])
    for at in range(1, min(len(stream), 200)):
        check(stream, {at}, deflate=deflate)

    check(stream, set(range(len(stream))), deflate=deflate)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.booleans())
@example(b"", False)
def test_any_bytes_at_all_are_the_same_octet_by_octet(stream, deflate):
    check(stream, set(range(len(stream))), deflate=deflate)
