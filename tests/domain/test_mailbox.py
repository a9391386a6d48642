"""How much is kept for a user who is away, and for how long."""

from datetime import UTC, datetime, timedelta

import pytest

from eyewall.domain.envelope import Priority
from eyewall.domain.mailbox import MailboxLimits, StoredMessage

START = datetime(2026, 3, 1, tzinfo=UTC)


def message(ttl=None):
    expires_at = None if ttl is None else START + timedelta(seconds=ttl)
    return StoredMessage("1", b"x", Priority.NORMAL, START, expires_at)


@pytest.mark.parametrize(
    ("messages", "size", "exceeded"),
    [(3, 30, False), (4, 30, True), (3, 31, True), (1, 31, False), (0, 0, False)],
)
def test_the_oldest_has_to_go_but_the_newest_stays(messages, size, exceeded):
    limits = MailboxLimits(max_messages=3, max_bytes=30)

    assert limits.exceeded(messages, size) is exceeded


@pytest.mark.parametrize(("ttl", "after"), [(None, 60), (30, 30), (90, 60)])
def test_a_message_goes_at_its_own_time_or_when_it_is_too_old(ttl, after):
    limits = MailboxLimits(max_age=60)

    assert limits.worthless_at(message(ttl)) == START + timedelta(seconds=after)


@pytest.mark.parametrize("age", [1e15, timedelta.max])
def test_an_age_beyond_every_date_is_none(age):
    limits = MailboxLimits(max_age=age)

    assert limits.worthless_at(message()) == datetime.max.replace(tzinfo=UTC)
    assert limits.worthless_at(message(5)) == START + timedelta(seconds=5)


@pytest.mark.parametrize(
    ("limit", "value"),
    [("max_messages", 0), ("max_messages", 1.5), ("max_bytes", -1), ("max_age", 0)],
)
def test_a_wrong_limit_is_told_where_it_is_built(limit, value):
    with pytest.raises(ValueError, match=limit):
        MailboxLimits(**{limit: value})
