"""Two hosts to listen on, and whether one port will do for both."""

import pytest

from eyewall.settings.hosts import overlap


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("::1", "localhost"),
        ("", "127.0.0.1"),
        ("*", "::1"),
        ("0.0.0.0", "10.0.0.5"),
        ("::", "fe80::1"),
        ("0.0.0.0", "host.example"),
        ("10.0.0.5, 127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "*"),
        ("Host.example", "host.example"),
    ],
)
def test_these_have_an_address_in_common(one, other):
    assert overlap(one, other)
    assert overlap(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1", "10.0.0.5"),
        ("0.0.0.0", "::1"),
        ("::", "127.0.0.1"),
        ("0.0.0.0", "::"),
        ("10.0.0.5,10.0.0.6", "10.0.0.7"),
        ("a.example", "b.example"),
    ],
)
def test_these_have_none(one, other):
    assert not overlap(one, other)
    assert not overlap(other, one)
