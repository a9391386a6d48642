"""Which messages a client remembers to have handled."""

from __future__ import annotations

from eyewall.client.receiver import MAX_REMEMBERED, HandledMessages


def test_a_message_is_new_until_it_has_begun():
    handled: HandledMessages[str] = HandledMessages()

    assert handled.find("m1") is None
    work = handled.begin("m1", "link")
    assert handled.find("m1") is work
    assert work.answer is None


def test_a_message_without_an_id_is_always_new():
    handled: HandledMessages[str] = HandledMessages()
    handled.begin(None, None)

    assert handled.find(None) is None
    assert len(handled) == 0


def test_the_oldest_is_forgotten_first():
    handled: HandledMessages[str] = HandledMessages()
    for number in range(MAX_REMEMBERED + 1):
        handled.begin(f"m{number}", None)

    assert len(handled) == MAX_REMEMBERED
    assert handled.find("m0") is None
    assert handled.find("m1") is not None


def test_an_ack_that_is_owed_goes_where_it_was_asked_for_once():
    handled: HandledMessages[str] = HandledMessages()
    for message_id in ("m1", "m2"):
        handled.defer_ack(message_id, "link")

    assert handled.begin("m1", None).ack_to == "link"
    assert handled.begin("m1", None).ack_to is None
    assert handled.begin("m2", "newer").ack_to == "newer"
    assert handled.begin("m2", None).ack_to is None


def test_the_oldest_that_is_owed_is_forgotten_first():
    handled: HandledMessages[str] = HandledMessages()
    for number in range(MAX_REMEMBERED + 1):
        handled.defer_ack(f"m{number}", "link")

    assert handled.begin("m0", None).ack_to is None
    assert handled.begin("m1", None).ack_to == "link"
