"""Which addresses a host to listen on means.

A host is an address or a name. ``*`` and the empty host mean all addresses of the machine, of both
families. Several hosts are separated by commas.
"""

from __future__ import annotations

from typing import Final

LOOPBACK: Final = "127.0.0.1"
"""This machine only."""
EVERYWHERE: Final = ("", "*")
"""All addresses of the machine, of both families."""
WILDCARDS: Final = {"0.0.0.0": "IPv4", "::": "IPv6"}  # noqa: S104  (asked for by name)
"""The wildcard address of each family."""
_LOCAL: Final = {"localhost": (LOOPBACK, "::1")}


def hosts_of(host: str) -> list[str]:
    """Return the hosts of a comma-separated list."""
    return [part.strip() for part in host.split(",")]


def overlap(one: str, other: str) -> bool:
    """Whether two hosts may share an address, so that they can't have the same port.

    Names are not looked up: any name but ``localhost`` may be an address of either family.
    """
    return any(_may_be_equal(a, b) for a in _addresses(one) for b in _addresses(other))


def _addresses(host: str) -> set[str]:
    found: set[str] = set()
    for name in hosts_of(host.lower()):
        found.update(WILDCARDS if name in EVERYWHERE else _LOCAL.get(name, (name,)))
    return found


def _may_be_equal(one: str, other: str) -> bool:
    if one == other:
        return True
    return any(
        wide in WILDCARDS and _may_be_of(narrow, WILDCARDS[wide])
        for wide, narrow in ((one, other), (other, one))
    )


def _may_be_of(address: str, family: str) -> bool:
    """Whether ``address``, an address or a name, may be of ``family``."""
    if address in WILDCARDS:
        return WILDCARDS[address] == family
    is_named = not address.replace(".", "").isdigit() and ":" not in address
    return is_named or (":" in address) == (family == "IPv6")
