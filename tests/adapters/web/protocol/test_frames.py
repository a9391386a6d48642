"""The server's frames, without a socket."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.protocol.frames import PlainFormat, build_close_frame, build_frame
from eyewall.application.ports.message import EncodedMessage
from tests.adapters.web.support import BINARY, TEXT, PlainCodec

MSGPACK = PlainCodec("msgpack", binary=True)


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_server_frame_has_the_shortest_length_and_no_mask(size, head):
    assert build_frame(b"x" * size) == head + b"x" * size


def test_a_close_reason_is_cut_to_what_fits_between_two_characters():
    frame = build_close_frame(1000, "é" * 100)

    assert frame[1] == 2 + 122
    assert frame[4:].decode() == "é" * 61


@pytest.mark.parametrize(
    ("codec", "frame", "expected"),
    [
        (PlainCodec(), EncodedMessage(b"{}", envelope="e"), build_frame(b"{}", TEXT)),
        (PlainCodec(), EncodedMessage(b"hi", raw=True), build_frame(b"hi", TEXT)),
        (PlainCodec(), EncodedMessage(b"hi", raw=True, binary=True), build_frame(b"hi", BINARY)),
        (MSGPACK, EncodedMessage(b"{}", envelope="e"), build_frame(b"msgpack:e", BINARY)),
        (MSGPACK, EncodedMessage(b"hi", raw=True), build_frame(b"hi", TEXT)),
    ],
    ids=["json", "raw text", "raw binary", "another codec", "raw under another codec"],
)
def test_a_message_is_put_into_the_frame_that_its_codec_wants(codec, frame, expected):
    assert PlainFormat(codec).build(frame) == expected
