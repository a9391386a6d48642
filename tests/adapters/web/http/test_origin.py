"""Which pages may connect."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.http.origin import Hosts, Origins
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


@pytest.mark.parametrize("rule", [[], ["https://other.org"], ["null"]])
async def test_a_list_stands_beside_the_own_origin(rule):
    assert Origins(rule).allow(["https://example.com"], from_host("example.com")) is True
    assert Origins(rule).allow(["https://example.com"], from_host("example.org")) is False
    assert Origins(rule).allow(["capacitor://localhost"], from_host("localhost")) is False


@pytest.mark.parametrize("rule", [["self"], ["Self", "https://other.org"], {"self"}, ("self",)])
async def test_self_in_a_list_is_what_is_in_it_anyway(rule):
    assert Origins(rule).allow(["https://example.com"], from_host("example.com")) is True
    assert Origins(rule).allow(["https://self"], from_host("example.com")) is False
    assert Origins(rule).allow(["https://example.com"], from_host("example.org")) is False


@pytest.mark.parametrize("rule", [["none"], ("None",), {"none"}])
async def test_none_lets_no_page_in_and_who_is_no_browser_all_the_same(rule):
    assert Origins(rule).allow(["https://example.com"], from_host("example.com")) is False
    assert Origins(rule).allow(["https://none"], from_host("none")) is False
    assert Origins(rule).allow(["null"], from_host("example.com")) is False
    assert Origins(rule).allow([], from_host("example.com")) is True


@pytest.mark.parametrize("beside", ["https://a.com", "self", "*", "null"])
@pytest.mark.parametrize("none", ["none", "NONE"])
def test_none_stands_alone(none, beside):
    """Read as "only these" it would be right by chance; a typing error would be a hole."""
    for rule in ([none, beside], [beside, none]):
        with pytest.raises(ValueError, match='check_origin: "none" lets no page in, and stands'):
            Origins(rule)


async def test_the_own_origin_has_every_name_under_which_the_client_may_have_asked():
    origins = Origins(["https://other.org"])
    for origin, allowed in [
        ("https://public.example", True),
        ("http://inner:8080", True),
        ("https://public.example:8443", False),
        ("https://evil.example", False),
    ]:
        hosts = ["inner:8080", "public.example"]
        assert origins.allow([origin], from_host("inner:8080"), hosts) is allowed
    assert origins.allow(["http://inner:8080"], from_host("inner:8080"), []) is False


@pytest.mark.parametrize(
    ("rule", "origins", "text"),
    [
        (None, ["https://a"], "origin https://a is not Host b: list it in check_origin, or have"),
        ([], ["https://a"], "origin https://a is not Host b: list it in check_origin, or have"),
        (["https://c"], ["https://a"], "origin https://a is not Host b, nor in check_origin: "),
        (["none"], ["https://a"], 'origin https://a is not let in: check_origin is "none"'),
        (lambda *_: False, ["https://a"], "check_origin said no to origin https://a"),
        (None, ["https://a", "https://b"], "more than one Origin"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_helps(rule, origins, text):
    assert Origins(rule).why_refused(origins, ["b"]).startswith(text)


async def test_a_callable_decides_alone():
    decides = Origins(lambda origin, _handshake: origin == "https://other.org")
    assert decides.allow(["https://example.com"], from_host("example.com")) is False
    assert decides.allow(["https://other.org"], from_host("example.com")) is True


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


OPAQUE = [
    "null",
    "file://",
    "capacitor://localhost",
    "ionic://localhost",
    "app://.",
    "tauri://localhost",
    "chrome-extension://abcdefghijklmnop",
    "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
    "vscode-webview://1a2b3c",
]


@pytest.mark.parametrize("origin", OPAQUE)
async def test_an_opaque_origin_is_let_in_where_it_is_listed_and_nowhere_else(origin):
    """Listed as it is: another of its kind is not meant."""
    assert Origins([origin]).allow([origin], from_host("a.com")) is True
    assert Origins([origin.upper()]).allow([origin], from_host("a.com")) is True
    for other in OPAQUE:
        allowed = Origins([origin]).allow([other], from_host("a.com"))
        assert allowed is (other == origin)
    assert Origins(["https://a.com"]).allow([origin], from_host("a.com")) is False


@pytest.mark.parametrize("origin", OPAQUE)
@pytest.mark.parametrize("host", ["localhost", "a.com", ".", "null", "abcdefghijklmnop"])
async def test_an_opaque_origin_is_never_the_same_origin(origin, host):
    """An application's own page at ``capacitor://localhost`` is no page of a server there."""
    assert Origins().allow([origin], from_host(host)) is False


async def test_a_callable_decides_and_may_have_to_wait():
    async def slowly(origin, handshake):
        return origin == "https://a.com" and handshake.headers["Host"] == "b.com"

    assert await Origins(slowly).allow(["https://a.com"], from_host("b.com")) is True
    assert await Origins(slowly).allow(["https://c.com"], from_host("b.com")) is False
    at_once = Origins(lambda origin, handshake: origin == "https://a.com")
    assert at_once.allow(["https://a.com"], from_host("b.com")) is True
    assert at_once.allow(["https://c.com"], from_host("b.com")) is False


@pytest.mark.parametrize(
    "rule", ["https://a.com", ["a.com"], ["https://a.com/path"], ["://"], [""]]
)
def test_a_rule_that_can_match_nothing_is_a_mistake(rule):
    with pytest.raises(ValueError, match="check_origin"):
        Origins(rule)


# --- hosts


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("app.example.com", "app.example.com", True),
        ("app.example.com", "APP.example.com", True),
        ("app.example.com", "app.example.com.", True),
        ("app.example.com", "app.example.com:8443", True),
        ("app.example.com", "app.example.com.evil.com", False),
        ("app.example.com", "evil.com", False),
        ("app.example.com", "evil.com#app.example.com", False),
        ("app.example.com", "app.example.com@evil.com", False),
        ("app.example.com", "evil.com/app.example.com", False),
        ("app.example.com", "", False),
        ("app.example.com:8443", "app.example.com:8443", True),
        ("app.example.com:8443", "app.example.com", False),
        ("app.example.com:443", "app.example.com", True),
        ("*.example.com", "a.example.com:80", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "aexample.com", False),
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("[::1]", "[::1]:8080", True),
        ("::1", "[::1]", True),
        ("*", "anything.org", True),
        ("app.example.com", "app.example.com:port", False),
        ("app.example.com", "app.example.com:99999", False),
    ],
)
def test_a_list_of_hosts_may_have_wildcards_and_ports(pattern, host, allowed):
    assert Hosts(["other.org", pattern]).allow([host]) is allowed


def test_without_a_list_every_host_is_served():
    assert Hosts().allow(["evil.com"])
    assert Hosts().allow([])


def test_with_a_list_a_request_has_to_name_one_host():
    assert not Hosts(["a.com"]).allow([])
    assert not Hosts(["a.com"]).allow(["a.com", "a.com"])
    assert not Hosts([]).allow(["a.com"])


@pytest.mark.parametrize("rule", ["a.com", ["https://a.com"], ["a.com/path"], [""], ["a b@c"]])
def test_a_list_that_can_match_nothing_is_a_mistake(rule):
    with pytest.raises(ValueError, match="allowed_hosts"):
        Hosts(rule)
