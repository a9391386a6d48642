"""What can go wrong, and what the client is told of it."""

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain import errors
from eyewall.domain.errors import (
    EyewallError,
    Forbidden,
    HandlerNotFound,
    InvalidEnvelope,
    Misuse,
    Overloaded,
    RateLimited,
    Refused,
    RoomFull,
    ShuttingDown,
    Unavailable,
    ValidationError,
    code_of,
    from_code,
)

relaxed = settings(deadline=None)

CODES = {
    "HandlerNotFound": "handler_not_found",
    "Unauthorized": "unauthorized",
    "Forbidden": "forbidden",
    "InvalidEnvelope": "invalid_envelope",
    "InvalidJson": "invalid_json",
    "UnsupportedData": "unsupported_data",
    "ValidationError": "validation",
    "RateLimited": "rate_limited",
    "Overloaded": "overloaded",
    "ShuttingDown": "overloaded",
    "RoomNotFound": "room_not_found",
    "RoomExists": "room_exists",
    "RoomFull": "room_full",
    "JoinForbidden": "join_forbidden",
    "NotAMember": "not_a_member",
    "ConnectionClosed": "connection_closed",
    "QueueFull": "queue_full",
    "SlowConsumer": "slow_consumer",
    "UserOffline": "user_offline",
    "AckTimeout": "ack_timeout",
    "Nacked": "nacked",
}
"""The codes of the wire protocol: clients that nobody here wrote rely on them."""

RETRYABLE = {
    "RateLimited",
    "Overloaded",
    "ShuttingDown",
    "RoomFull",
    "QueueFull",
    "UserOffline",
    "AckTimeout",
}


def made(name, text="why"):
    kind = getattr(errors, name)
    match name:
        case "ValidationError":
            return kind({"name": ["missing"]}, text)
        case "RateLimited":
            return kind(2.5, text)
        case "Overloaded" | "ShuttingDown":
            return kind(text, 2.5)
    return kind(text)


def test_the_refusals_are_those_of_the_protocol():
    own = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Refused) and kind is not Refused
    }

    assert own == set(CODES)


@pytest.mark.parametrize("name", CODES)
def test_a_refusal_has_the_protocols_code(name):
    assert code_of(made(name)) == getattr(errors, name).code == CODES[name]


@pytest.mark.parametrize("name", CODES)
def test_a_refusal_says_whether_a_retry_makes_sense(name):
    assert made(name).retryable is (name in RETRYABLE)


def test_the_families_do_not_overlap():
    for family in (Refused, Unavailable, Misuse):
        assert issubclass(family, EyewallError)
        others = {Refused, Unavailable, Misuse} - {family}
        assert not any(issubclass(family, other) for other in others)


def test_what_is_outside_may_be_tried_again_and_our_own_bug_may_not():
    assert Unavailable.retryable is True
    assert Misuse.retryable is False


@pytest.mark.parametrize("error", [Misuse("our bug"), RuntimeError("secret"), EyewallError("x")])
def test_what_is_not_for_the_client_is_internal(error):
    assert code_of(error) == "internal"


def test_whatever_is_unavailable_has_one_code():
    """The client need not know which part of the outside it was."""

    class RedisGone(Unavailable):
        pass

    assert code_of(Unavailable()) == code_of(RedisGone()) == "unavailable"


def test_an_applications_own_refusal_has_its_name_as_its_code():
    class NoMoreTickets(Refused):
        pass

    assert NoMoreTickets.code == "no_more_tickets"
    assert code_of(NoMoreTickets("sold out")) == "no_more_tickets"


def test_an_applications_own_refusal_may_name_its_code():
    class Sold(Refused):
        code = "gone"

    class SoldTwice(Sold):
        pass

    assert Sold.code == "gone"
    assert SoldTwice.code == "sold_twice"


def test_an_error_shows_its_text_or_else_its_code_in_words():
    assert str(RoomFull("the lab is full")) == "the lab is full"
    assert RoomFull("the lab is full").text == "the lab is full"
    assert RoomFull("the lab is full").args == ("the lab is full",)
    assert str(RoomFull()) == "room full"
    assert RoomFull().text == ""


def test_most_errors_have_no_further_details():
    assert Forbidden("no").details() == {}


def test_an_unreadable_message_is_named_as_far_as_it_could_be_read():
    """The reply bears the message's id and topic where these were found."""
    error = InvalidEnvelope("no topic", ref="7", topic="chat")

    assert (error.ref, error.topic, str(error)) == ("7", "chat", "no topic")
    assert InvalidEnvelope().ref is InvalidEnvelope().topic is None
    assert error.details() == {}


def test_a_validation_error_says_which_fields_and_why():
    error = ValidationError({"name": ["missing"]})

    assert error.details() == {"fields": {"name": ["missing"]}}
    assert str(error) == error.text == "the payload does not fit its schema: name: missing"
    assert str(ValidationError({})) == "the payload does not fit its schema"


def test_a_text_of_its_own_stays_as_it_is():
    error = ValidationError({"name": ["missing"]}, "bad")

    assert (str(error), error.text, error.args) == ("bad", "bad", ("bad",))


class Unruly(dict):
    def items(self):
        raise LookupError


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"a": "no", "b": ["bad", "worse"]}, "a: no; b: bad"),
        ({"to": {"name": ["missing"], "0": {"x": ["no"]}}}, "to.name: missing; to.0.x: no"),
        ({"list": {0: ["no"]}}, "list.0: no"),
        ({"_schema": ["not an object"]}, "not an object"),
        ({"to": {"_schema": ["not an object"]}}, "to: not an object"),
        (["not an object"], "not an object"),
        ("not an object", "not an object"),
        ({"a": None, "b": [], "c": 1}, "a; b; c: 1"),
        ({"a\nb": ["c\u2028d"]}, "a\\nb: c\\u2028d"),
        ({"\ud800": ["no"]}, "?: no"),
        ({"a": Unruly(b=1)}, None),
        ({}, None),
    ],
)
def test_the_text_names_the_fields(fields, told):
    expected = "the payload does not fit its schema"

    assert str(ValidationError(fields)) == (f"{expected}: {told}" if told else expected)


def test_the_text_is_short_however_many_fields_are_wrong():
    error = ValidationError({f"{n}" + "x" * 500: ["y" * 500] for n in range(1000)})

    assert len(str(error)) < 1000
    assert str(error).endswith("; ...")
    assert len(error.fields) == 1000


def test_the_text_is_short_however_deep_they_are():
    fields: Any = ["no"]
    for _ in range(5000):
        fields = {"a": fields}

    assert len(str(ValidationError(fields))) < 300


def test_a_validation_error_keeps_its_own_copy_of_the_fields():
    fields = {"name": ["missing"]}
    error = ValidationError(fields)

    fields["other"] = ["wrong"]

    assert error.fields == {"name": ["missing"]}


def test_a_limit_says_when_to_come_back():
    assert RateLimited(2.5).details() == {"retry_after": 2.5}
    assert RateLimited(2.5, "slowly").text == "slowly"


def test_an_overload_says_when_to_come_back_a_second_by_default():
    assert Overloaded().details() == {"retry_after": 1.0}
    assert Overloaded("busy", 4.0).details() == {"retry_after": 4.0}
    assert ShuttingDown("bye").details() == {"retry_after": 1.0}


@pytest.mark.parametrize("name", [name for name in CODES if name != "ShuttingDown"])
def test_what_went_over_the_wire_comes_back_as_it_was(name):
    error = made(name)

    back = from_code(code_of(error), str(error), error.details())

    assert type(back) is type(error)
    assert str(back) == "why"
    assert back.details() == error.details()


def test_a_node_that_shuts_down_looks_like_an_overloaded_one_from_outside():
    back = from_code("overloaded", "draining", ShuttingDown("draining", 3.0).details())

    assert type(back) is Overloaded
    assert back.details() == {"retry_after": 3.0}


def test_unavailable_comes_back_as_unavailable():
    back = from_code("unavailable", "no redis", {})

    assert type(back) is Unavailable
    assert str(back) == "no redis"


def test_an_unknown_code_is_a_plain_refusal():
    """A newer server may have codes that this client does not know."""
    back = from_code("something_new", "what", {})

    assert type(back) is Refused
    assert str(back) == "what"


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("validation", {"fields": {}}),
        ("rate_limited", {"retry_after": 0.0}),
        ("overloaded", {"retry_after": 1.0}),
    ],
)
def test_details_that_are_missing_are_made_up_for(code, details):
    back = from_code(code, "why", {})

    assert back.code == code
    assert back.details() == details


@relaxed
@given(st.text(), st.text())
def test_any_code_and_text_of_the_wire_make_an_error(code, text):
    back = from_code(code, text, {})

    assert isinstance(back, (Refused, Unavailable))
    assert back.text in (text, str(back))


def test_an_error_can_be_raised_without_a_text():
    with pytest.raises(EyewallError, match="handler not found"):
        raise HandlerNotFound
