"""Each group of the settings checks itself where it is built."""

import pytest

from eyewall import Server, Settings
from eyewall.domain.mailbox import MailboxLimits
from eyewall.settings.groups import (
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


def test_several_words_may_come_in_whatever_holds_them():
    """As ``Server`` takes them; a set is kept in an order, for what is shown."""
    settings = Settings(
        client_commands={"leave", "join"},
        check_origin=["https://a.example"],
        trusted_proxies=frozenset({"10.0.0.1"}),
        server=ServerSettings(allowed_hosts={"b.example": 1, "a.example": 2}.keys()),
    )

    assert settings.client_commands == ("join", "leave")
    assert settings.check_origin == ("https://a.example",)
    assert settings.server.allowed_hosts == ("a.example", "b.example")
    assert Server.from_settings(settings).options.trusted_proxies == ("10.0.0.1",)


@pytest.mark.parametrize("wrong", [{1, "join"}, {"join": True}, {"jump"}], ids=str)
def test_what_holds_something_else_is_a_mistake(wrong):
    with pytest.raises(SettingsError, match="client_commands: expected true or false, or a list"):
        Settings(client_commands=wrong)
