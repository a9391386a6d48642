"""What nodes say to each other: each kind is read as it was written, by this release and the
one before it, and what no node sends is refused."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.application.cluster import protocol
from eyewall.application.cluster.packet import BadPacket, unpack
from eyewall.domain.envelope import Priority
from eyewall.domain.errors import Misuse
from eyewall.domain.history import Position
from eyewall.domain.identity import Where

KINDS = {
    found.kind: found
    for found in vars(protocol).values()
    if isinstance(found, type) and isinstance(getattr(found, "kind", None), str)
}

RECORDED = [  # packets as nodes have sent them: never changed, only added to
    ast.literal_eval(line)
    for path in sorted((Path(__file__).parent / "recorded").glob("format_*.txt"))
    for line in path.read_text().splitlines()
]


def asked(data):
    """The kind and the fields of a packet: those of the request, if it is one."""
    packet = unpack(data, max_payload=1 << 20)
    if packet.kind == "call":
        return packet.header["op"], packet.header["args"]
    return packet.kind, packet.header


@pytest.mark.parametrize("data", RECORDED, ids=lambda data: asked(data)[0])
def test_a_recorded_packet_is_read_and_written_as_it_was(data):
    name, header = asked(data)

    event = KINDS[name].read(header)

    assert event.header() == header


def test_there_is_a_recorded_packet_of_each_kind():
    assert {asked(data)[0] for data in RECORDED} == set(KINDS)


def test_a_node_of_an_older_release_does_not_say_by_which_handshake_the_client_came():
    header = {"name": "s", "user": "ada", "heir": "t", "since": 0.0}

    assert protocol.TakeSession.read(header).came_as == "ada"


def test_optional_fields_are_left_out():
    message = protocol.RoomMessage("lab", Priority.NORMAL)
    position = protocol.RoomPosition("lab", Position("e", 1))

    assert message.header() == {"room": "lab", "p": 1}
    assert protocol.StreamMessage(position, Priority.LOW).header() == {
        "room": "lab",
        "e": "e",
        "o": 1,
        "p": 0,
    }


def test_a_filter_that_json_can_not_compare_is_misuse():
    with pytest.raises(Misuse, match="key"):
        protocol.FindConnections(Where(attributes={"key": (1,)})).header()


@pytest.mark.parametrize("left", ["", [], {}, "1"])
def test_the_time_left_of_a_plan_is_a_number_or_null(left):
    plan = protocol.Deliver((), Priority.NORMAL, 5.0, 0, 0.0, None, False).header()
    plan["plan"][3] = left

    with pytest.raises(BadPacket, match="numbers"):
        protocol.Deliver.read(plan)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("data", RECORDED, ids=lambda data: asked(data)[0])
@given(value=JSON, choice=st.integers(0, 30), without=st.booleans())
def test_what_no_node_sends_is_a_bad_packet(data, value, choice, without):
    """Whatever stands in one of the fields, or if it is not there."""
    name, header = asked(data)
    header = json.loads(json.dumps(header))
    if header:
        field = sorted(header)[choice % len(header)]
        header.pop(field) if without else header.update({field: value})

    try:
        event = KINDS[name].read(header)
    except BadPacket:
        return
    written = json.dumps(event.header())  # as text: a NaN equals no other one
    assert json.dumps(KINDS[name].read(json.loads(written)).header()) == written
