"""What a handshake has to say."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from eyewall.adapters.web.http.handshake import (
    MAX_HEADERS,
    Refusal,
    check_header_count,
    check_upgrade,
    switching_protocols,
    try_later,
)

ASKED = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_the_key_is_answered_as_in_the_rfc_s_example():
    assert check_upgrade("GET", HTTPHeaders(ASKED)) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("method", "changes", "status"),
    [
        ("POST", {}, 426),
        (None, {}, 426),
        ("GET", {"Upgrade": "h2c"}, 426),
        ("GET", {"Connection": "keep-alive"}, 426),
        ("GET", {"Sec-WebSocket-Version": "12"}, 426),
        ("GET", {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ"}, 400),
    ],
)
def test_what_is_not_asked_for_as_it_should_is_refused(method, changes, status):
    with pytest.raises(Refusal) as caught:
        check_upgrade(method, HTTPHeaders(ASKED | changes))

    assert caught.value.status == status


def test_so_many_fields_and_no_more():
    headers = HTTPHeaders()
    for n in range(MAX_HEADERS):
        headers.add(f"X-{n // 2}", "value")  # each name twice
    check_header_count(headers)
    headers.add("X-0", "one more")

    with pytest.raises(Refusal) as caught:
        check_header_count(headers)

    assert caught.value.status == 431


def test_the_answer_names_what_was_agreed_on():
    assert switching_protocols("key=", None, None) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Accept: key=\r\n\r\n"
    )
    full = switching_protocols("key=", "eyewall.v1.json", "permessage-deflate").split(b"\r\n")
    assert b"Sec-WebSocket-Protocol: eyewall.v1.json" in full
    assert b"Sec-WebSocket-Extensions: permessage-deflate" in full


@pytest.mark.parametrize(("seconds", "told"), [(0, "1"), (0.2, "1"), (2.5, "3")])
def test_who_is_to_come_back_is_told_whole_seconds(seconds, told):
    refusal = try_later(seconds)

    assert (refusal.status, refusal.headers) == (503, {"Retry-After": told})
