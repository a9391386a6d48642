"""Negotiation of permessage-deflate: RFC 7692, 5.1 and 7.1."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.protocol.negotiation import RESPONSE, negotiate

OFFERED = {
    "nothing more": ("permessage-deflate", RESPONSE),
    "the server keeps nothing": ("permessage-deflate; server_no_context_takeover", RESPONSE),
    "the client keeps nothing": ("permessage-deflate; client_no_context_takeover", RESPONSE),
    "a browser's": ("permessage-deflate; client_max_window_bits", RESPONSE),
    "a window of the client's": (
        "permessage-deflate; client_max_window_bits=10",
        f"{RESPONSE}; client_max_window_bits=10",
    ),
    "the smallest window": (
        "permessage-deflate; client_max_window_bits=8",
        f"{RESPONSE}; client_max_window_bits=8",
    ),
    "the widest windows": (
        "permessage-deflate; server_max_window_bits=15; client_max_window_bits=15",
        f"{RESPONSE}; client_max_window_bits=15; server_max_window_bits=15",
    ),
    "in quotes": (
        'permessage-deflate; client_max_window_bits="12"',
        f"{RESPONSE}; client_max_window_bits=12",
    ),
    "with room": (" permessage-deflate ;\tclient_max_window_bits = 9 ", None),
    "others around it": (
        "x-webkit-deflate-frame, , permessage-deflate, bbf-usp-protocol",
        RESPONSE,
    ),
}


@pytest.mark.parametrize(("header", "answer"), OFFERED.values(), ids=OFFERED)
def test_an_offer_is_answered_with_what_it_named_and_no_context_takeover(header, answer):
    assert negotiate([header]) == (answer or f"{RESPONSE}; client_max_window_bits=9")


DECLINED = {
    "no offer": "",
    "another extension": "x-webkit-deflate-frame",
    "another name that begins so": "permessage-deflates",
    "a name in capitals": "PERMESSAGE-DEFLATE",
    "an unknown parameter": "permessage-deflate; mystery",
    "an unknown parameter with a value": "permessage-deflate; mystery=1",
    "a flag with a value": "permessage-deflate; server_no_context_takeover=1",
    "the other flag with a value": "permessage-deflate; client_no_context_takeover=true",
    "a flag twice": ("permessage-deflate; client_no_context_takeover; client_no_context_takeover"),
    "a window twice": "permessage-deflate; client_max_window_bits=9; client_max_window_bits=9",
    "a window too small": "permessage-deflate; client_max_window_bits=7",
    "a window too wide": "permessage-deflate; client_max_window_bits=16",
    "a leading zero": "permessage-deflate; client_max_window_bits=08",
    "a sign": "permessage-deflate; client_max_window_bits=+9",
    "no number": "permessage-deflate; client_max_window_bits=wide",
    "digits of another script": "permessage-deflate; client_max_window_bits=٩",
    "an empty value": "permessage-deflate; client_max_window_bits=",
    "a quote left open": 'permessage-deflate; client_max_window_bits="9',
    "an empty parameter": "permessage-deflate;",
    "no value where one must be": "permessage-deflate; server_max_window_bits",
    "a server window too wide": "permessage-deflate; server_max_window_bits=16",
    "a smaller server window": "permessage-deflate; server_max_window_bits=14",
    "the smallest server window": "permessage-deflate; server_max_window_bits=8",
}


@pytest.mark.parametrize("header", DECLINED.values(), ids=DECLINED)
def test_an_offer_that_is_wrong_or_asks_too_much_is_passed_over(header):
    assert negotiate([header]) is None


@pytest.mark.parametrize("header", DECLINED.values(), ids=DECLINED)
def test_the_next_offer_counts_when_one_is_passed_over(header):
    fallback = "permessage-deflate; client_max_window_bits=11"
    answer = f"{RESPONSE}; client_max_window_bits=11"

    assert negotiate([f"{header}, {fallback}"]) == answer
    assert negotiate([header, fallback]) == answer


def test_the_first_of_several_offers_that_fit_is_taken():
    offers = "permessage-deflate; client_max_window_bits=10, permessage-deflate"

    assert negotiate([offers]) == f"{RESPONSE}; client_max_window_bits=10"


def test_without_the_header_there_is_nothing_to_agree_on():
    assert negotiate([]) is None


def test_a_long_header_is_read_in_one_pass():
    """A request's headers have 16 KiB; none of it may be gone over again and again."""
    assert negotiate(['permessage-deflate; x="' + "\\" * 16_000]) is None
    assert negotiate(["permessage-deflate;" * 800]) is None
