"""Where a client connects to, and what of that is shown."""

from __future__ import annotations

import ssl
import traceback

import pytest

from eyewall.client import Client
from eyewall.client.address import (
    MAX_SHOWN,
    Address,
    is_header_safe,
    redacted_url,
    valid_token,
    valid_url,
)
from eyewall.client.tokens import Token

GOOD = [
    "ws://127.0.0.1:8080/ws",
    "WSS://hub.example",
    "ws://[::1]:8080/ws",
    "wss://bücher.example/wś?größe=1",
    "ws://ada:pa55@hub/ws?token=s3cret",
    "ws://" + "a" * 64 + "/ws",
]


@pytest.mark.parametrize("url", GOOD)
def test_an_address_is_taken_as_it_is(url):
    assert valid_url(f" {url}\r\n") == url


@pytest.mark.parametrize(
    "url",
    [
        None,
        b"ws://hub",
        "",
        "http://s3cret",
        "//s3cret/ws",
        "ws:s3cret",
        "ws://",
        "ws:///s3cret",
        "ws://:80/s3cret",
        "ws://hub:s3cret/ws",
        "ws://hub:99999/s3cret",
        "ws://hub:0/s3cret",
        "ws://hub:-1/s3cret",
        "ws://[::1/s3cret",
        "ws://s3cret@hub/ws",
        "ws://ada:%ff@hub/s3cret",
        "ws://ada:s3cret@hub℀/ws",
        "ws://hub/ws#s3cret",
        "ws://hub/ws?token=s3cret#",
        "ws://hub/ws?token=s3\ncret",
        "ws://hub/w s?token=s3cret",
        "ws://hub/ws?token=s3cret\ud800",
        "ws://hub/ws?token=s3cret\x00",
    ],
)
def test_what_is_none_is_told_at_once_and_not_quoted(url):
    with pytest.raises(ValueError, match="url must") as raised:
        Client(url)

    assert "s3" not in "".join(traceback.format_exception(raised.value)[-1:])
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"),
        ("s3cret:", "x"),
        ("X-Key\n", "x"),
        (5, "x"),
        ("X-Key", "s3\ncret"),
        ("X-Key", "s3cret\x00"),
        ("X-Key", "s3cret\ud800"),
        ("X-Key", b"s3cret"),
    ],
)
def test_a_header_that_can_t_be_sent_is_told_at_once_and_not_quoted(name, value):
    with pytest.raises(ValueError, match="headers") as raised:
        Client("ws://hub/ws", headers={name: value})

    assert "s3" not in str(raised.value)


@pytest.mark.parametrize("inner", ["\n", "\r", "\x00", "\x7f", "\x85", "\u2028", "\ud800"])
def test_a_token_that_can_t_be_sent_is_told_at_once_and_not_quoted(inner):
    with pytest.raises(ValueError, match="token must") as raised:
        Client("ws://hub/ws", token=f"s3{inner}cret")

    assert "s3" not in str(raised.value)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize("token", ["", " \n"])
def test_a_token_with_nothing_in_it_is_told_at_once(token):
    with pytest.raises(ValueError, match="not empty"):
        Client("ws://hub/ws", token=token)


@pytest.mark.parametrize("token", ["s3cret", "s3 cret", "s3crét", "پاسخ‌ها", "👩‍👩‍👧"])
def test_any_other_is_taken(token):
    assert valid_token(f"\t{token}\r\n") == token
    assert is_header_safe(token)


def test_tls_settings_are_for_tls():
    with pytest.raises(ValueError, match="wss://"):
        Client("ws://hub/ws", ssl=ssl.create_default_context())


@pytest.mark.parametrize("url", GOOD)
def test_a_client_shows_where_it_connects_to_and_no_secret(url):
    text = repr(Client(url))

    assert text.startswith(f"Client('{url[:5]}")
    assert not {"pa55", "s3cret", "ada", "token"} & set(text.replace(":", " ").split())
    assert "pa55" not in text
    assert "?" not in text
    assert redacted_url("ws://ada:pa55@hub/ws?token=s3cret") == "ws://***@hub/ws"


def test_what_is_made_of_them_shows_none_either():
    address = Address(
        url="ws://ada:pa55@hub/ws?token=s3cret",
        headers={"Cookie": "s3cret"},
        ssl=None,
        timeout=1.0,
        heartbeat=1.0,
        max_message_size=1,
    )

    text = repr(address) + repr(Token("s3cret"))
    assert "pa55" not in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("Connect call failed ('127.0.0.1', 9)", "Connect call failed ('127.0.0.1', 9)"),
        ("invalid header:\r\n t0ken", "invalid header: ***"),
        ("wss://u:p@h/x?a=1&b=2 is none", "wss://***@h/x?a=***&b=*** is none"),
        ("u:p/w@h is none", "***@h is none"),
        ("Authorization: Bearer abc def", "Authorization: Bearer *** def"),
        ("got basic abc", "got basic ***"),
        ("the cookie was c00kie", "the cookie was ***"),
        ("ada and pa55 and quer1", "ada and *** and ***"),
        ("x" * 10_000, "x" * MAX_SHOWN),
    ],
)
def test_what_others_say_is_shown_without_secrets(said, seen):
    address = Address(
        url="ws://ada:pa55@hub/ws?key=quer1",
        headers={"Cookie": "session c00kie"},
        ssl=None,
        timeout=1.0,
        heartbeat=1.0,
        max_message_size=1,
    )

    assert address.redact(said, "t0ken") == seen
