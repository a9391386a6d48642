"""Signed tokens: who is let in, and what keeps everybody else out."""

from __future__ import annotations

import base64
import importlib
import json
import sys
import time
from datetime import UTC, datetime

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from eyewall.adapters.auth.jwt import JwtAuthenticator
from eyewall.domain.errors import Unauthorized
from eyewall.domain.handshake import Handshake

KEY = "a shared secret that is long enough for the longest algorithm, SHA-512"
PAST = 1_000_000_000
OTHER_ALGORITHM = "the token is signed with an algorithm that is not accepted"
LATER = 4_000_000_000  # in 2096: no suite takes so long


def pem(public) -> str:
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())


def token(key=KEY, algorithm="HS256", **claims) -> str:
    return jwt.encode({"sub": "ada", "exp": LATER} | claims, key, algorithm)


def knock(text: str) -> Handshake:
    return Handshake(headers={"Authorization": f"Bearer {text}"})


def authenticator(key=KEY, algorithms=("HS256",), **options) -> JwtAuthenticator:
    return JwtAuthenticator(key, algorithms=algorithms, **options)


def refused(text: str, by: JwtAuthenticator) -> str:
    """What is told of a bad token, which must have nothing of the token in it."""
    with pytest.raises(Unauthorized) as error:
        by.authenticate(knock(text))
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    for part in (part for part in text.split(".") if len(part) > 1):
        assert part not in str(error.value)
    return str(error.value)


def test_the_claims_say_who_it_is():
    meta = authenticator().authenticate(knock(token(roles=["admin"], tags=["beta", "eu"])))

    assert (meta.user_id, meta.roles, meta.tags) == ("ada", {"admin"}, {"beta", "eu"})


def test_the_connection_ends_with_the_token():
    meta = authenticator().authenticate(knock(token()))

    assert meta.expires_at == datetime.fromtimestamp(LATER, UTC)


def test_the_query_will_do():
    meta = authenticator().authenticate(Handshake(query={"access_token": token()}))

    assert meta.user_id == "ada"


@pytest.mark.parametrize(
    ("private", "algorithm"), [(RSA, "RS256"), (RSA, "PS384"), (CURVE, "ES256")]
)
def test_public_keys_verify(private, algorithm):
    by = authenticator(pem(private.public_key()), [algorithm])

    assert by.authenticate(knock(token(private, algorithm))).user_id == "ada"


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({}, set()),
        ({"scope": "read write"}, {"read", "write"}),
        ({"scope": ["read"]}, {"read"}),
        ({"scope": None}, set()),
    ],
)
def test_roles_are_a_list_or_words(claims, roles):
    meta = authenticator(roles_claim="scope").authenticate(knock(token(**claims)))

    assert meta.roles == roles


def test_the_claims_can_have_other_names():
    by = authenticator(user_claim="uid", tags_claim="groups")

    meta = by.authenticate(knock(token(sub="x", uid="bob", groups=["g"])))

    assert (meta.user_id, meta.tags) == ("bob", {"g"})


def test_a_user_may_be_a_number():
    """Many a database counts its users; PyJWT alone would refuse it."""
    assert authenticator().authenticate(knock(token(sub=42))).user_id == "42"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": True},
        {"sub": ["ada"]},
        {"sub": "a" * 201},
        {"sub": "a\nb"},
        {"roles": {"admin": True}},
        {"roles": ["admin", 1]},
        {"tags": 7},
        {"exp": 10**20},
    ],
)
def test_claims_of_a_wrong_form_are_unauthorized_and_named(claims):
    (name,) = claims

    told = refused(token(**claims), authenticator())

    assert told == f"the claim {name} of the token has a wrong form"


def test_a_token_without_a_user_is_unauthorized():
    text = jwt.encode({"exp": LATER}, KEY, "HS256")

    assert refused(text, authenticator()) == "the token lacks the claim sub"
    by = authenticator(user_claim="uid")
    assert refused(token(), by) == "the token lacks the claim uid"


def test_a_token_without_an_end_is_unauthorized():
    text = jwt.encode({"sub": "ada"}, KEY, "HS256")

    assert refused(text, authenticator()) == "the token lacks the claim exp"


@pytest.mark.parametrize(
    ("claims", "options", "told"),
    [
        ({"exp": PAST}, {}, "expired"),
        ({"nbf": LATER}, {}, "not valid yet"),
        ({"aud": "shop"}, {"audience": "chat"}, "another audience"),
        ({}, {"audience": "chat"}, "lacks the claim aud"),
        ({"aud": "shop"}, {}, "another audience"),
        ({"iss": "evil"}, {"issuer": "good"}, "another issuer"),
        ({}, {"issuer": "good"}, "lacks the claim iss"),
        ({"exp": "soon"}, {}, "not valid"),
        ({"exp": float("inf")}, {}, "not valid"),
        ({"nbf": "later"}, {}, "not valid"),
    ],
)
def test_what_the_token_is_for_is_checked(claims, options, told):
    assert told in refused(token(**claims), authenticator(**options))


def test_the_right_audience_and_issuer_pass():
    by = authenticator(audience="chat", issuer="good")

    assert by.authenticate(knock(token(aud=["chat", "shop"], iss="good"))).user_id == "ada"


def test_leeway_forgives_clocks_that_differ_and_the_connection_lives_so_long():
    """What is let in late must not be cut off at once."""
    end = int(time.time()) - 5
    text = token(exp=end)

    assert "expired" in refused(text, authenticator())
    meta = authenticator(leeway=600).authenticate(knock(text))
    assert meta.expires_at == datetime.fromtimestamp(end + 600, UTC)


def test_another_key_is_unauthorized():
    assert refused(token(key="x" * 32), authenticator()) == "the token is signed with another key"


def test_another_algorithm_is_unauthorized_even_with_the_right_key():
    assert refused(token(algorithm="HS512"), authenticator()) == OTHER_ALGORITHM


def test_a_token_that_is_not_signed_is_unauthorized():
    text = jwt.encode({"sub": "ada", "exp": LATER}, None, "none")

    assert refused(text, authenticator()) == OTHER_ALGORITHM


def test_a_token_signed_with_the_public_key_as_a_secret_is_unauthorized():
    """Everybody has the public key: it must never pass for a shared secret."""
    public = pem(RSA.public_key())

    def part(value) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    signed = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': 'ada', 'exp': LATER})}"
    hmac = jwt.get_algorithm_by_name("HS256")
    seal = base64.urlsafe_b64encode(hmac.sign(signed.encode(), public.encode()))
    forged = f"{signed}.{seal.decode().rstrip('=')}"

    assert refused(forged, authenticator(public, ["RS256"])) == OTHER_ALGORITHM


@pytest.mark.parametrize("text", ["x", "a.b", "a.b.c", "..", "\ud800.\ud800.x", "W10.W10.W10"])
def test_what_is_no_token_is_unauthorized(text):
    assert refused(text, authenticator()) == "the token is not valid"


@pytest.mark.parametrize("part", range(3))
def test_a_token_that_was_cut_is_unauthorized(part):
    parts = token().split(".")
    parts[part] = parts[part][:-2]

    assert refused(".".join(parts), authenticator()) == "the token is not valid"


@pytest.mark.parametrize("part", [1, 2], ids=["claims", "signature"])
def test_a_part_of_another_token_is_unauthorized(part):
    """Both tokens are good, with one key: only their parts do not belong together."""
    parts, others = token().split("."), token(sub="ben").split(".")
    parts[part] = others[part]

    told = refused(".".join(parts), authenticator())

    assert told == "the token is signed with another key"


@pytest.mark.parametrize(
    ("key", "algorithms", "told"),
    [
        (KEY, [], "at least one"),
        (KEY, "HS256", "must be a list"),
        (KEY, ["none"], "proves nothing|no algorithm"),
        (KEY, ["HS256", "NONE"], "no algorithm"),
        (KEY, ["HS256", None], "no algorithm"),
        (KEY, ["HS1"], "not an algorithm"),
        (KEY, ["HS256", "RS256"], "must not be mixed"),
        (KEY, ["RS256"], "of no use for RS256"),
        (pem(RSA.public_key()), ["HS256"], "of no use for HS256"),
        (pem(RSA.public_key()), ["ES256"], "of no use for ES256"),
        ("k" * 31, ["HS256"], r"too short for HS256: .* 32 bytes \(RFC 7518, 3.2\)"),
        (b"k" * 31, ["HS256"], "too short for HS256"),
        ("k" * 47, ["HS384"], "too short for HS384: it needs at least 48"),
        ("k" * 63, ["HS256", "HS512"], "too short for HS512: it needs at least 64"),
        ("", ["HS256"], "key must be"),
        (None, ["HS256"], "key must be"),
    ],
)
def test_a_wrong_set_up_is_told_where_it_is_built(key, algorithms, told):
    with pytest.raises(ValueError, match=told) as mistake:
        JwtAuthenticator(key, algorithms=algorithms)

    assert not key or str(key) not in str(mistake.value)


@pytest.mark.parametrize("key", ["k" * 32, b"k" * 32, "ä" * 16])
def test_a_secret_of_thirty_two_bytes_will_do(key):
    assert authenticator(key).authenticate(knock(token(key))).user_id == "ada"


def test_the_leeway_is_checked_where_it_is_built():
    with pytest.raises(ValueError, match="leeway"):
        authenticator(leeway=-1)


def test_the_key_is_not_shown():
    assert repr(authenticator()) == "JwtAuthenticator(algorithms=['HS256'])"


def test_without_pyjwt_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "eyewall.adapters.auth.jwt")

    with pytest.raises(ImportError, match=r"eyewall\[jwt\]"):
        importlib.import_module("eyewall.adapters.auth.jwt")
