"""The frame parser against the reference, after every chunk, however the bytes are cut.

The first three bytes choose: the limit, what may be compressed and how the stream is
made of the rest; where it is cut and how much one call hands out; and the dice for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from eyewall.adapters.web.protocol.deflate import Inflater
from eyewall.adapters.web.protocol.parser import MESSAGES_PER_FEED, Event, Parser
from tests.fuzz.frames import frame, scripted
from tests.fuzz.reference import CLOSE, Expected, expected

LIMITS = (1000, 1, 125, 126, 4096, 70_000, 1 << 20, 2 << 20)
RATIOS: tuple[float | bool | None, ...] = (False, 20.0, None, False)
"""Nothing may be compressed; what inflates to so many times its size; whatever."""
SCRIPT = 32
SLICES = (MESSAGES_PER_FEED, 1, 2, 3)
ONE, WHOLE, HEADERS, ANY = range(4)
"""Cut octet by octet, not at all, within headers, anywhere."""


def check(data: bytes) -> None:
    if len(data) < 3:
        return
    options, cuts, seed, rest = data[0], data[1], data[2], data[3:]
    limit, ratio = LIMITS[options & 7], RATIOS[options >> 3 & 3]
    stream = scripted(rest) if options & SCRIPT else rest
    truth = expected(stream, limit, deflate=ratio)
    parser = Parser(limit) if ratio is False else Parser(limit, Inflater(limit, ratio).inflate)
    most = SLICES[cuts >> 2 & 3]
    events: list[Event] = []
    at = 0
    for chunk in chunks(stream, cuts & 3, seed):
        at += len(chunk)
        events += handed_out(parser, chunk, most)
        assert events == truth.until(at), f"other events at {at}"
        check_state(parser, truth, at)
    if parser.failure is not None or (events and events[-1][0] == CLOSE):
        check_end(parser, stream)


def handed_out(parser: Parser, chunk: bytes, most: int) -> list[Event]:
    events = parser.feed(chunk, most)
    assert len(events) <= most, "more events than one call may give"
    while parser.has_more:
        assert parser.failure is None, "more to read of what has failed"
        again = parser.feed(b"", most)
        assert len(again) <= most, "more events than one call may give"
        events += again
    return events


def check_state(parser: Parser, truth: Expected, at: int) -> None:
    failure = parser.failure
    if failure is None:
        assert not truth.failure or at < truth.due, f"not refused at {at}: {truth.failure}"
        assert parser.idle == (at in truth.idle), f"idle at {at}"
    else:
        assert at >= truth.told, f"refused at {at}: {failure}"
        assert failure.reason in truth.failure, f"refused at {at}: {failure}"
        assert not parser.idle, "one that failed could be used again"


def check_end(parser: Parser, stream: bytes) -> None:
    """Nothing comes after a failure or a close frame, whatever is sent."""
    failure = parser.failure
    for more in (frame(0x81, b"more"), stream, b""):
        assert parser.feed(more) == [], "an event after the end"
        assert parser.failure is failure, "another failure after the end"
        assert not parser.has_more


def chunks(stream: bytes, kind: int, seed: int) -> Iterator[bytes]:
    """Cut ``stream``, the same way each time."""
    rng = random.Random(seed)
    at = 0
    while at < len(stream):
        if kind == ONE:
            size = 1
        elif kind == WHOLE:
            size = len(stream)
        elif kind == HEADERS:
            size = rng.choice((1, 2, 3, 5, 7, 9, 13))
        else:
            size = rng.choice((1, 10, 100, 5000)) * rng.randint(1, 9)
        yield stream[at : at + size]
        at += size
