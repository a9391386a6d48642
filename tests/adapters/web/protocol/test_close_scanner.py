"""Finding the peer's close frame in what is thrown away."""

from __future__ import annotations

import itertools
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.adapters.web.protocol.close_scanner import CloseScanner
from tests.adapters.web.support import header, masked

GOODBYE = masked(b"\x03\xe8bye", 0x88)

BEFORE = {
    "nothing": b"",
    "messages of every length": b"".join(
        masked(b"x" * n) for n in (0, 1, 125, 126, 65_535, 65_536)
    ),
    "control frames": masked("", 0x89) + masked("x" * 125, 0x8A),
    "fragments": masked("a", 0x01) + masked("", 0x89) + masked("b", 0x80),
    "what breaks the protocol but keeps to frames": b"\x81\x02hi" + masked("x", 0xF3),
    "a payload that looks like a close frame": masked(GOODBYE * 100, 0x82, mask=bytes(4)),
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_close_frame_is_found_behind_whatever_frames(before):
    search = CloseScanner()
    search.feed(before)
    assert not search.found
    search.feed(GOODBYE)
    assert search.found


def test_a_close_frame_without_a_mask_is_one_too():
    search = CloseScanner()
    search.feed(b"\x88\x02\x03\xe8")
    assert search.found


@given(
    frames=st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from([0x81, 0x82, 0x01, 0x80, 0x89, 0xC1])),
        max_size=8,
    ),
    cuts=st.lists(st.integers(0, 3000)),
)
def test_it_is_found_wherever_the_bytes_are_cut(frames, cuts):
    before = b"".join(masked(os.urandom(size), first) for size, first in frames)
    data = before + GOODBYE
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    search = CloseScanner()
    found_at = None
    counted = 0
    for start, end in itertools.pairwise(places):
        counted += search.feed(data[start:end])
        if search.found:
            found_at = end
            break
    assert found_at is not None
    assert found_at >= len(before) + 2  # not before its header is whole
    assert counted == len(frames)


def test_a_frame_that_never_ends_costs_no_memory():
    search = CloseScanner()
    search.feed(header(1 << 40))
    chunk = b"\x88" * 16_384
    tracemalloc.start()
    for _ in range(200):
        assert search.feed(chunk) == 0
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not search.found
    assert held < 4096
