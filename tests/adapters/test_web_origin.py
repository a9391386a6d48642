"""Which pages may connect."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.origin import Origins
from eyewall.domain.handshake import Handshake


def from_host(host):
    return Handshake(headers={"Host": host})


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://example.com", "example.com", True),
        ("https://example.com", "example.com", True),
        ("https://EXAMPLE.com", "example.COM", True),
        ("https://example.com", "example.com:443", True),
        ("http://example.com:80", "example.com", True),
        ("http://example.com:8080", "example.com:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://example.com", "example.com:8080", False),
        ("http://example.com:8080", "example.com", False),
        ("https://evil.com", "example.com", False),
        ("https://example.com.evil.com", "example.com", False),
        ("https://example.com@evil.com", "example.com", False),
        ("https://evil.com@example.com", "example.com", False),
        ("null", "example.com", False),
        ("", "example.com", False),
        ("https://example.com/path", "example.com", False),
        ("https://example.com:port", "example.com", False),
        ("file://", "example.com", False),
    ],
)
async def test_by_default_only_the_same_origin(origin, host, allowed):
    assert Origins().allow([origin], from_host(host)) is allowed


async def test_who_names_no_origin_is_no_browser():
    assert Origins().allow([], from_host("example.com"))
    assert Origins([]).allow([], from_host("example.com"))
    assert Origins(lambda _origin, _handshake: False).allow([], from_host("example.com"))


async def test_two_origins_are_none():
    assert not Origins(["*"]).allow(["https://a.com", "https://b.com"], from_host("a.com"))


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://example.com", "https://example.com", True),
        ("https://example.com", "https://example.com:443", True),
        ("https://example.com", "http://example.com", False),
        ("https://example.com", "https://example.com:8443", False),
        ("https://example.com:8443", "https://example.com:8443", True),
        ("https://*.example.com", "https://a.example.com", True),
        ("https://*.example.com", "https://a.b.EXAMPLE.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://evilexample.com", False),
        ("https://*.example.com", "https://a.example.com.evil.com", False),
        ("https://*.example.com", "https://evil.com#.example.com", False),
        ("https://*.example.com", "https://evil.com?.example.com", False),
        ("https://*.example.com", "https://evil.com/.example.com", False),
        ("https://*", "https://anything.org", True),
        ("https://*", "http://anything.org", False),
        ("https://*", "null", False),
        ("*", "https://anything.org:1", True),
        ("*", "null", True),
    ],
)
async def test_a_list_may_have_wildcards_for_hosts(pattern, origin, allowed):
    rule = ["https://other.org", pattern]
    assert Origins(rule).allow([origin], from_host("x")) is allowed


async def test_a_list_replaces_the_rule_of_the_same_origin():
    assert not Origins(["https://a.com"]).allow(["https://b.com"], from_host("b.com"))


async def test_a_callable_decides_and_may_have_to_wait():
    async def slowly(origin, handshake):
        return origin == "https://a.com" and handshake.headers["Host"] == "b.com"

    assert await Origins(slowly).allow(["https://a.com"], from_host("b.com")) is True
    assert await Origins(slowly).allow(["https://c.com"], from_host("b.com")) is False
    at_once = Origins(lambda origin, handshake: origin == "https://a.com")
    assert at_once.allow(["https://a.com"], from_host("b.com")) is True
    assert at_once.allow(["https://c.com"], from_host("b.com")) is False


@pytest.mark.parametrize("rule", ["https://a.com", ["a.com"], ["https://a.com/path"], ["null"]])
def test_a_rule_that_can_match_nothing_is_a_mistake(rule):
    with pytest.raises(ValueError, match="check_origin"):
        Origins(rule)
