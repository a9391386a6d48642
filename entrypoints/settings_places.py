"""Whether two hosts to listen on have an address in common, without asking for names."""

from __future__ import annotations

from typing import Final

EVERYWHERE: Final = ("", "*")
"""All addresses of the machine, of both families."""
_ALL: Final = {"0.0.0.0": "IPv4", "::": "IPv6"}  # noqa: S104  (named, and not listened on)
_LOCAL: Final = {"localhost": ("127.0.0.1", "::1")}


def have_in_common(one: str, other: str) -> bool:
    """Whether a port can't be had on both: each is a host as ``listener`` takes it."""
    return any(_meet(a, b) for a in _addresses(one) for b in _addresses(other))


def _addresses(host: str) -> set[str]:
    found: set[str] = set()
    for part in host.lower().split(","):
        name = part.strip()
        found.update(_ALL if name in EVERYWHERE else _LOCAL.get(name, (name,)))
    return found


def _meet(one: str, other: str) -> bool:
    if one == other:
        return True
    return any(
        wide in _ALL and _may_be(narrow, _ALL[wide])
        for wide, narrow in ((one, other), (other, one))
    )


def _may_be(address: str, family: str) -> bool:
    """Whether ``address`` may be of ``family``. A name may be of both: it is not looked up."""
    if address in _ALL:
        return _ALL[address] == family
    is_named = not address.replace(".", "").isdigit() and ":" not in address
    return is_named or (":" in address) == (family == "IPv6")
