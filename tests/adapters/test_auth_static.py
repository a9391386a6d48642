"""Fixed tokens and their owners."""

from __future__ import annotations

import pytest

from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnMeta, UserId

ADA = ConnMeta(user_id=UserId("ada"), roles=frozenset({"admin"}), tags=frozenset({"beta"}))


def knock(token: str) -> Handshake:
    return Handshake(headers={"Authorization": f"Bearer {token}"})


def test_a_known_token_is_its_owner():
    authenticator = StaticAuthenticator({"s3cret": ADA, "other": ConnMeta()})

    assert authenticator.authenticate(knock("s3cret")) is ADA


def test_the_query_will_do():
    authenticator = StaticAuthenticator({"s3cret": ADA})

    assert authenticator.authenticate(Handshake(query={"token": "s3cret"})) is ADA


@pytest.mark.parametrize("token", ["s3cre", "s3crett", "S3CRET", "\ud800", "é"])
def test_any_other_token_is_unauthorized_and_not_repeated(token):
    authenticator = StaticAuthenticator({"s3cret": ADA})

    with pytest.raises(Unauthorized) as refused:
        authenticator.authenticate(knock(token))

    assert token not in str(refused.value)


def test_a_handshake_without_a_token_is_unauthorized():
    with pytest.raises(Unauthorized):
        StaticAuthenticator({"s3cret": ADA}).authenticate(Handshake())


def test_a_token_that_is_not_ascii_works():
    assert StaticAuthenticator({"schlüssel": ADA}).authenticate(knock("schlüssel")) is ADA


def test_no_token_can_be_seen_in_the_object():
    """Neither its text nor anything that it holds has a token."""
    authenticator = StaticAuthenticator({"s3cret": ADA})

    assert repr(authenticator) == "StaticAuthenticator(1 token)"
    assert "s3cret" not in str(vars(authenticator))


@pytest.mark.parametrize("tokens", [{"": ADA}, {"s3cret": {"user_id": "ada"}}, {1: ADA}])
def test_a_wrong_table_is_told_where_it_is_built(tokens):
    with pytest.raises(ValueError, match="token") as mistake:
        StaticAuthenticator(tokens)

    assert "s3cret" not in str(mistake.value)
