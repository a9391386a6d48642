from hypothesis import given
from hypothesis import strategies as st

from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.envelope import Envelope, Message, Priority


class CountingWire:
    def __init__(self, name):
        self.name = name
        self.built = 0

    def build(self, frame):
        self.built += 1
        return self.name.encode() + frame.payload


def test_a_wire_form_is_built_once_however_many_receive_it():
    frame, wire = EncodedMessage(b"x"), CountingWire("json:")

    forms = [frame.for_wire(wire) for _ in range(3)]

    assert forms[0] == b"json:x"
    assert all(form is forms[0] for form in forms)
    assert wire.built == 1


def test_each_wire_has_a_form_of_its_own():
    frame = EncodedMessage(b"x")

    assert frame.for_wire(CountingWire("a")) == b"ax"
    assert frame.for_wire(CountingWire("b")) == b"bx"


def test_the_same_message_to_another_recipient_shares_the_bytes():
    wire = CountingWire("json:")
    frame = EncodedMessage(
        b"x", message=Message("t"), priority=Priority.HIGH, stream="r", fan_out=True
    )

    copy = frame.addressed("bob")
    copy.for_wire(wire)
    frame.for_wire(wire)

    assert wire.built == 1
    assert copy.recipient == "bob"
    assert frame.recipient is None
    assert (copy.message, copy.priority, copy.stream, copy.fan_out) == (
        frame.message,
        Priority.HIGH,
        "r",
        True,
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc"))))
def test_no_form_is_built_twice_whoever_asks_first(asked):
    """Copies may be made before a form is built, between two of them, or after."""
    wires = {name: CountingWire(name) for name in "abc"}
    frames = [EncodedMessage(b"x")]

    for who, name in asked:
        while len(frames) <= who:
            frames.append(frames[0].addressed("bob"))
        assert frames[who].for_wire(wires[name]) == name.encode() + b"x"

    assert all(wire.built <= 1 for wire in wires.values())


def test_an_envelope_that_hardly_anybody_asks_for_is_made_when_somebody_does():
    made = []

    def make():
        made.append(Envelope("t"))
        return made[-1]

    frame = EncodedMessage(b"x", envelope=make)
    assert made == []
    copy = frame.addressed("bob")

    assert frame.envelope is frame.envelope is made[0]
    assert copy.envelope == Envelope("t")


def test_a_queue_counts_the_bytes_of_the_payload():
    assert EncodedMessage(b"four").size == 4
