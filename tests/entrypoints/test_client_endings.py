"""Which ends a client comes back after (protocol.md, "Close codes")."""

from __future__ import annotations

import pytest

from eyewall import ConnectionClosed, Forbidden, Unauthorized, Unavailable
from eyewall.client.link import (
    MAX_REQUESTED_WAIT,
    comes_back,
    ending_of_close,
    ending_of_refusal,
    requested_wait,
)
from eyewall.domain.connection import CLOSE_CODES, COMES_BACK, DisconnectReason

BACK = {1001, 1006, 1011, 1012, 1013, *range(4000, 4500)}


def test_it_comes_back_after_these_codes_and_no_other():
    assert {code for code in range(1000, 5001) if comes_back(code)} == BACK


@pytest.mark.parametrize("reason", CLOSE_CODES)
def test_the_server_keeps_sessions_for_who_comes_back(reason):
    """Both sides have the same idea of which ends are for good."""
    assert comes_back(CLOSE_CODES[reason]) is (reason in COMES_BACK)


def test_a_close_says_what_it_was():
    ending = ending_of_close(4503, "disconnected")

    assert isinstance(ending.error, ConnectionClosed)
    assert str(ending.error) == "closed with 4503 disconnected"
    assert not ending.comes_back
    assert not ending.stale


def test_an_expired_token_is_not_shown_again():
    ending = ending_of_close(4401, "token_expired")

    assert ending.comes_back
    assert ending.stale


def test_what_a_drain_asked_for_counts_after_its_own_close():
    ending = ending_of_close(1012, DisconnectReason.SERVER_SHUTDOWN, 3.5)

    assert (ending.wait, ending.exact) == (3.5, True)


def test_what_a_drain_asked_for_does_not_count_after_another_end():
    assert ending_of_close(1006, "", 3.5).wait is None


@pytest.mark.parametrize(
    ("status", "kind", "back"),
    [
        (401, Unauthorized, False),
        (403, Forbidden, False),
        (404, Unavailable, True),
        (426, Unavailable, True),
        (500, Unavailable, True),
        (503, Unavailable, True),
    ],
)
def test_a_refused_handshake(status, kind, back):
    ending = ending_of_refusal(status, {})

    assert type(ending.error) is kind
    assert str(status) in str(ending.error)
    assert ending.comes_back is back


def test_a_busy_server_says_how_long():
    ending = ending_of_refusal(503, {"Retry-After": "7"})

    assert (ending.wait, ending.exact) == (7.0, False)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", 0.0),
        (2, 2.0),
        (0.25, 0.25),
        ("99999", MAX_REQUESTED_WAIT),
        (1e300, MAX_REQUESTED_WAIT),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("9" * 5000, None),
        ("-1", None),
        (-1, None),
        (float("nan"), None),
        (True, None),
        (None, None),
        ([], None),
        ("²", None),
    ],
)
def test_what_is_asked_for_is_read_with_care(value, wait):
    assert requested_wait(value) == wait
