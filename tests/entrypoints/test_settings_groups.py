"""Each group of the settings checks itself where it is built."""

import pytest

from eyewall.domain.mailbox import MailboxLimits
from eyewall.settings_groups import (
    AuthSettings,
    BusSettings,
    CompressionSettings,
    HistorySettings,
    OfflineSettings,
    ServerSettings,
    SettingsError,
    StateSettings,
)


@pytest.mark.parametrize("group", [BusSettings, StateSettings, HistorySettings])
def test_what_the_nodes_share_is_in_memory(group):
    assert group().kind == "memory"
    with pytest.raises(SettingsError, match="kind: expected memory"):
        group(kind="stone")


def test_all_mistakes_of_a_group_are_told_together():
    with pytest.raises(SettingsError) as caught:
        ServerSettings(host=" ", port=-1)

    assert len(caught.value.mistakes) == 2
    assert str(caught.value).startswith("2 mistakes in the settings:")


def test_compression_that_is_off_is_none():
    assert CompressionSettings().config() is None
    assert CompressionSettings(enabled=True, level=3).config().level == 3


def test_a_secret_is_in_no_repr():
    assert "s3cret" not in repr(AuthSettings(kind="jwt", key="s3cret" * 8, algorithms=("HS256",)))


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"kind": "disk"}, "kind"),
        ({"kind": "sqlite"}, "path"),
        ({"default": "store"}, "default"),
        ({"max_messages": 0}, "max_messages"),
    ],
)
def test_what_is_to_be_stored_needs_a_place(wrong, key):
    with pytest.raises(SettingsError) as caught:
        OfflineSettings(**wrong)

    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == [key]


def test_what_is_kept_has_the_limits_of_the_domain():
    assert OfflineSettings().kind == "none"
    assert MailboxLimits(**OfflineSettings().limits()) == MailboxLimits()
