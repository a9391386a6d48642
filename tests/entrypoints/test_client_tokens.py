"""Where a client's token comes from, and when it is renewed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from eyewall.client.tokens import RENEW_BEFORE, RenewalBackoff, Token, Tokens, parse_token

WALL = 1_800_000_000.0


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tokens(source, time=None) -> Tokens:
    return Tokens(source, now=time or Time(), wall=lambda: WALL)


@pytest.mark.parametrize(
    ("given", "renew_at"),
    [
        ("t", None),
        ({"token": "t"}, None),
        ({"token": "t", "expires_in": 1000}, 1100 - RENEW_BEFORE),
        ({"token": "t", "expires_in": 50.0}, 140.0),
        ({"token": "t", "expires_in": -5}, 100.0),
        ({"token": "t", "expires_at": datetime.fromtimestamp(WALL + 600, UTC)}, 700 - RENEW_BEFORE),
        ({"token": "t", "expires_at": "2027-01-15T08:10:00Z"}, 700 - RENEW_BEFORE),
        ({"token": "t", "expires_at": None}, None),
        ({"token": "t", "expires_at": datetime.fromtimestamp(WALL - 3600, UTC)}, None),
        ({"token": "t", "expires_at": "2027-01-15T08:00:00Z"}, None),
        ({"token": " t\n"}, None),
    ],
)
def test_what_a_callback_may_give(given, renew_at):
    assert parse_token(given, now=100.0, wall=WALL) == Token("t", renew_at)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        5,
        {},
        {"token": ""},
        {"token": "s3cret", "expires_in": "soon"},
        {"token": "s3cret", "expires_in": True},
        {"token": "s3cret", "expires_at": 5},
        {"token": "s3cret", "expires_at": "tomorrow"},
        {"token": "s3cret", "expires_at": datetime(2027, 1, 1)},  # noqa: DTZ001
        "s3cret\nor two",
        {"token": "s3cret\x00"},
        {"token": " \n"},
        b"s3cret",
    ],
)
def test_what_it_may_not_give_is_told_without_the_token(given):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        parse_token(given, now=0.0, wall=0.0)

    assert "s3cret" not in str(raised.value)


def test_a_token_of_a_wrong_type_is_refused_at_once():
    with pytest.raises(ValueError, match="token must be"):
        tokens(5)


async def test_no_token_is_none():
    assert await tokens(None).get() is None


async def test_a_text_stays():
    source = tokens("t")
    source.discard()

    assert await source.get() == "t"
    assert source.renew_in() is None


async def test_one_whose_end_nobody_knows_is_asked_for_each_time():
    given = iter("ab")
    source = tokens(lambda: next(given))

    assert [await source.get(), await source.get()] == ["a", "b"]
    assert source.renew_in() is None


async def test_one_whose_end_is_known_is_kept_until_shortly_before():
    time = Time()
    given = iter("ab")

    async def ask():
        return {"token": next(given), "expires_in": 1000}

    source = tokens(ask, time)
    assert await source.get() == "a"
    assert source.renew_in() == 1000 - RENEW_BEFORE
    time.now += 1000 - RENEW_BEFORE - 1
    assert await source.get() == "a"
    time.now += 1
    assert await source.get() == "b"


async def test_one_that_was_refused_is_not_shown_again():
    given = iter("ab")
    source = tokens(lambda: {"token": next(given), "expires_in": 1000})
    await source.get()
    source.discard()

    assert source.renew_in() is None
    assert await source.get() == "b"


def test_renewals_that_are_of_no_use_come_ever_less_often():
    pace = RenewalBackoff(soonest=15.0, again=10.0)

    assert [pace.next(0.0) for _ in range(7)] == [15.0, 30.0, 60.0, 120.0, 240.0, 240.0, 240.0]
    assert [pace.next(left) for left in (20.0, 4.0, 15.0, 14.9)] == [20.0, 15.0, 15.0, 15.0]
    assert [pace.failed(), pace.failed()] == [20.0, 40.0]
    assert [pace.next(20.0), pace.failed()] == [20.0, 10.0]


async def test_what_the_callback_raises_goes_to_who_asks():
    def broken():
        raise OSError("no login")

    with pytest.raises(OSError, match="no login"):
        await tokens(broken).get()
