"""What a host to listen on stands for.

A host is an address or a name; ``*`` and the empty one are all addresses of the machine, of
both families, and several may stand with commas between them.
"""

from __future__ import annotations

from typing import Final

LOOPBACK: Final = "127.0.0.1"
"""This machine only."""
EVERYWHERE: Final = ("", "*")
"""All addresses of the machine, of both families."""
ALL: Final = {"0.0.0.0": "IPv4", "::": "IPv6"}  # noqa: S104  (asked for by name)
"""The address that stands for all of its family."""
_LOCAL: Final = {"localhost": (LOOPBACK, "::1")}


def hosts_of(host: str) -> list[str]:
    """Return the hosts between the commas."""
    return [part.strip() for part in host.split(",")]


def overlap(one: str, other: str) -> bool:
    """Whether two hosts may have an address in common, so that a port can't be had on both.

    No name is looked up: any but ``localhost`` may be an address of either family.
    """
    return any(_meet(a, b) for a in _addresses(one) for b in _addresses(other))


def _addresses(host: str) -> set[str]:
    found: set[str] = set()
    for name in hosts_of(host.lower()):
        found.update(ALL if name in EVERYWHERE else _LOCAL.get(name, (name,)))
    return found


def _meet(one: str, other: str) -> bool:
    if one == other:
        return True
    return any(
        wide in ALL and _may_be(narrow, ALL[wide]) for wide, narrow in ((one, other), (other, one))
    )


def _may_be(address: str, family: str) -> bool:
    """Whether ``address``, or some address of a name, may be of ``family``."""
    if address in ALL:
        return ALL[address] == family
    is_named = not address.replace(".", "").isdigit() and ":" not in address
    return is_named or (":" in address) == (family == "IPv6")
