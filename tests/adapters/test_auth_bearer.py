"""Where a token may stand in a handshake, and which one counts."""

from __future__ import annotations

import pytest

from eyewall.adapters.auth.bearer import LONGEST, bearer_token
from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Fields, Handshake, Headers


def knock(headers=(), query=()) -> Handshake:
    return Handshake(headers=Headers(headers), query=Fields(query))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_header_carries_it_whatever_the_case_of_the_scheme(scheme):
    assert bearer_token(knock({"authorization": f"{scheme} abc"})) == "abc"


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_the_query_carries_it_where_a_browser_leaves_no_other_way(name):
    assert bearer_token(knock(query={name: "abc"})) == "abc"


def test_the_header_beats_the_query():
    """A client that can set headers means them; the address may be somebody else's link."""
    found = bearer_token(knock({"Authorization": "Bearer right"}, {"token": "wrong"}))

    assert found == "right"


def test_another_scheme_is_left_to_whoever_asked_for_it():
    """A proxy with a password of its own does not keep the query's token from counting."""
    found = bearer_token(knock({"Authorization": "Basic dTpw"}, {"token": "abc"}))

    assert found == "abc"


@pytest.mark.parametrize(
    "handshake",
    [
        knock(),
        knock({"Authorization": "Bearer"}),
        knock({"Authorization": "Bearer   "}),
        knock({"Authorization": "abc"}),
        knock({"Authorization": "Basic abc"}),
        knock(query={"token": ""}),
        knock(query={"Token": "abc"}),
    ],
)
def test_no_token_is_unauthorized(handshake):
    with pytest.raises(Unauthorized, match="a token is needed"):
        bearer_token(handshake)


@pytest.mark.parametrize(
    "handshake",
    [
        knock([("Authorization", "Bearer one"), ("authorization", "Bearer two")]),
        knock(query=[("token", "one"), ("token", "two")]),
        knock(query=[("token", "one"), ("access_token", "two")]),
    ],
)
def test_two_tokens_are_unauthorized(handshake):
    """Which one a proxy in front has looked at would be a guess."""
    with pytest.raises(Unauthorized, match="more than one"):
        bearer_token(handshake)


def test_the_same_token_twice_is_one():
    assert bearer_token(knock(query=[("token", "abc"), ("access_token", "abc")])) == "abc"


def test_a_token_is_bounded_before_anybody_parses_it():
    assert bearer_token(knock(query={"token": "x" * LONGEST}))
    with pytest.raises(Unauthorized, match="too long") as refused:
        bearer_token(knock(query={"token": "x" * (LONGEST + 1)}))

    assert "xxx" not in str(refused.value)
