"""Whose address counts."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.http.proxies import TrustedProxies


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        (["10.0.0.0/8"], "203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", [], "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (["10.0.0.1"], "10.0.0.2", ["198.51.100.1"], "10.0.0.2"),
        (["10.0.0.0/8"], "10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        (["10.0.0.0/8"], "10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.0.0.7"], "198.51.100.1"),
        (["10.0.0.0/8"], "10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        (["10.0.0.0/8"], "10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["10.0.0.0/8"], "10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", [""], "10.0.0.1"),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        (["fd00::/8"], "fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        (["fe80::/10"], "fe80::1%eth0", ["2001:db8::1"], "2001:db8::1"),
        (["0.0.0.0/0"], "", ["198.51.100.1"], None),
        (["0.0.0.0/0"], None, ["198.51.100.1"], None),
    ],
)
def test_the_nearest_address_that_no_trusted_proxy_stands_for(trusted, peer, forwarded, client):
    assert TrustedProxies(trusted).client(peer, forwarded) == client


@pytest.mark.parametrize("trusted", ["10.0.0.1", ["nginx"], ["10.0.0.0/99"]])
def test_what_is_no_address_is_a_mistake(trusted):
    with pytest.raises(ValueError, match=r"list|IPv4|nginx"):
        TrustedProxies(trusted)


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "hosts"),
    [
        ([], "10.0.0.1", ["public.example"], ["inner"]),
        (["10.0.0.0/8"], "203.0.113.9", ["public.example"], ["inner"]),
        (["10.0.0.0/8"], "10.0.0.1", [], ["inner"]),
        (["10.0.0.0/8"], "10.0.0.1", ["public.example:8443"], ["inner", "public.example:8443"]),
        (["10.0.0.0/8"], "10.0.0.1", ["public.example, next"], ["inner", "public.example"]),
        (["10.0.0.0/8"], "10.0.0.1", ["public.example", "next"], ["inner", "public.example"]),
        (["0.0.0.0/0"], None, ["public.example"], ["inner"]),
        (["0.0.0.0/0"], "", ["public.example"], ["inner"]),
    ],
)
def test_a_trusted_proxy_may_say_which_host_was_asked_for(trusted, peer, forwarded, hosts):
    """The first that it names: those behind it are what proxies asked each other for."""
    assert TrustedProxies(trusted).hosts(peer, ["inner"], forwarded) == hosts
