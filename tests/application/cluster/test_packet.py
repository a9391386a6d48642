"""What nodes say to each other: read whole, or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.application.cluster.fields import texts
from eyewall.application.cluster.packet import MAX_HEADER, BadPacket, Packet, unpack


def framed(head, payload=b"", version=1):
    return bytes((version,)) + len(head).to_bytes(4, "big") + head + payload


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256))])
def test_what_is_packed_is_unpacked(payload):
    packet = Packet("n1", "room", {"room": "ü", "n": [1, None]}, payload)

    assert unpack(packet.pack(), max_payload=256) == packet


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x01\x00\x00\x00",
        framed(b"{}"),
        framed(b"[]"),
        framed(b"not json"),
        framed(b"\xff"),
        framed(b'{"n":"a","k":"b"}'),
        framed(b'{"n":1,"k":"b","h":{}}'),
        framed(b'{"n":"a","k":1,"h":{}}'),
        framed(b'{"n":"a","k":"b","h":[]}'),
        framed(b"[" * 100_000),
        b"\x01\xff\xff\xff\xff" + b"x" * 100,
        b"\x01\x00\x00\x00\x10{}",
    ],
    ids=repr,
)
def test_what_is_no_packet_is_refused(data):
    with pytest.raises(BadPacket):
        unpack(data, max_payload=100)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused(version):
    """A newer node may mean something else by the same bytes."""
    with pytest.raises(BadPacket, match="version"):
        unpack(framed(b'{"n":"a","k":"b","h":{}}', version=version), max_payload=100)


def test_a_payload_may_be_so_large_and_not_larger():
    assert unpack(Packet("n1", "k", {}, b"x" * 10).pack(), max_payload=10).payload == b"x" * 10
    with pytest.raises(BadPacket, match="too large"):
        unpack(Packet("n1", "k", {}, b"x" * 11).pack(), max_payload=10)


def test_a_header_that_says_it_is_huge_is_not_read():
    with pytest.raises(BadPacket):
        unpack(b"\x01" + (MAX_HEADER + 1).to_bytes(4, "big") + b"x" * 10, max_payload=100)


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_packet_or_refused(data):
    for candidate in (data, b"\x01" + data, framed(data)):
        try:
            packet = unpack(candidate, max_payload=100)
        except BadPacket:
            continue
        assert isinstance(packet.header, dict)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.lists(i, max_size=3)))
def test_only_a_list_of_strings_is_one(value):
    value = json.loads(json.dumps(value))
    try:
        assert texts(value) == value
    except BadPacket:
        assert not (isinstance(value, list) and all(isinstance(item, str) for item in value))
