"""What the log says of who is not let in: why, and nothing of what was shown to get in."""

from __future__ import annotations

import pytest

from eyewall.application.ports.redaction import LONGEST, hint_of, trace_without
from eyewall.domain.errors import Forbidden, Unauthorized, Unavailable

TWO_LINES = "two\\x0alines \\x1b[31m \\x202e \u00e4"
TOKEN = "abcdefgh.ijklmnopqrstuvwx.yz0123456789"


class Banned(Unauthorized):
    def __str__(self) -> str:
        return "banned until Monday"


class Broken(Unauthorized):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (Unauthorized("no such ticket"), "no such ticket"),
        (Forbidden("not from here"), "not from here"),
        (Unavailable("the users' table is away"), "the users' table is away"),
        (Banned(), "banned until Monday"),
        (Unauthorized(), None),
        (Broken("x"), None),
        (ValueError("a bug has a line of its own"), None),
        (None, None),
        (
            Unauthorized("two\nlines \x1b[31m \u202e \u00e4"),
            "two\\x0alines \\x1b[31m \\x202e \u00e4",
        ),
        (Unauthorized("x" * 5000), "x" * LONGEST + "..."),
    ],
)
def test_the_text_of_a_refusal_is_the_hint(error, hint):
    assert hint_of(error, [TOKEN]) == hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"{TOKEN} is not known", "*** is not known"),
        (f"not known: {TOKEN!r}", "not known: '***'"),
        (f"not known: {TOKEN[:16]}...", None),
        (f"not known: {TOKEN.split('.')[1]}", None),
        (f"{'x' * 190}{TOKEN}", "x" * 190 + "***"),
        (f"{'x' * (LONGEST * 5 - 20)}{TOKEN}", None),
        ("abcdef is no user", "abcdef is no user"),
    ],
)
def test_a_token_is_in_no_hint(text, hint):
    assert hint_of(Unauthorized(text), ["", "no", TOKEN]) == hint


def test_a_token_with_quotes_is_masked_as_it_is_written_too():
    secret = 'it\'s "s3cret"\t'

    assert hint_of(Unauthorized(f"{secret!r} is not known"), [secret]) == "'***' is not known"


def test_a_traceback_that_shows_no_secret_is_none():
    def fails(text):
        try:
            raise KeyError(text)
        except KeyError as error:
            return error

    assert trace_without(fails("ada"), [TOKEN]) is None
    trace = trace_without(fails(TOKEN), [TOKEN])
    assert trace is not None
    assert "KeyError: '***'" in trace
    assert TOKEN not in trace
