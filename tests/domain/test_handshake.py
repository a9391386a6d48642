"""What a client says when it knocks."""

import pytest

from eyewall.domain.handshake import Fields, Handshake, Headers


def test_a_name_gives_its_first_value():
    fields = Fields([("a", "1"), ("b", "2"), ("a", "3")])

    assert fields["a"] == "1"
    assert fields.get("a") == "1"
    assert fields.get("missing") is None
    assert fields.all("a") == ["1", "3"]
    assert fields.all("missing") == []


def test_it_is_a_mapping():
    fields = Fields({"a": "1", "b": "2"})

    assert dict(fields) == {"a": "1", "b": "2"}
    assert len(fields) == 2
    assert "a" in fields
    assert "A" not in fields
    with pytest.raises(KeyError):
        fields["missing"]


def test_headers_do_not_mind_case():
    headers = Headers({"X-Token": "t"})

    assert headers.get("x-token") == "t"
    assert headers.get("X-TOKEN") == "t"
    assert "X-token" in headers


def test_headers_of_one_name_in_several_cases_are_one():
    headers = Headers([("Cookie", "a=1"), ("cookie", "b=2")])

    assert headers.all("COOKIE") == ["a=1", "b=2"]
    assert len(headers) == 1


def test_credentials_do_not_reach_a_log_by_way_of_a_repr():
    handshake = Handshake(
        query={"token": "s3cret"},
        headers={"Authorization": "Bearer s3cret"},
        cookies={"session": "s3cret"},
    )

    assert "s3cret" not in repr(handshake)
    assert "token" in repr(handshake)


def test_a_handshake_takes_plain_mappings():
    handshake = Handshake(query={"a": "1"}, headers={"Origin": "x"}, subprotocols=["p"])

    assert handshake.query.get("a") == "1"
    assert handshake.headers.get("origin") == "x"
    assert handshake.subprotocols == ("p",)


def test_a_handshake_that_says_nothing():
    handshake = Handshake()

    assert handshake.path == "/ws"
    assert dict(handshake.query) == dict(handshake.headers) == dict(handshake.cookies) == {}
    assert handshake.ip is None
    assert handshake.subprotocols == ()
