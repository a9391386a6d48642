"""The limits on the connections of this node, and of one address.

Rules of this file:

1. A slot is acquired before the first await of a handshake, so handshakes count: concurrent
   ones never exceed the limit.
2. A slot is released once: ``Slot.release`` is idempotent.
3. A limit that is off costs nothing, and counts nothing.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from eyewall.domain.errors import Overloaded

SITE = 64
"""Bits of an IPv6 address that identify one customer: a home or a rented machine has all the
addresses below, and could use a new one for every connection."""


class Slot:
    """Implements ``ConnectionSlot``: one connection's slot in the limits."""

    __slots__ = ("_address", "_owner")

    def __init__(self, owner: ConnectionLimits, address: str | None) -> None:
        self._owner: ConnectionLimits | None = owner
        self._address = address

    def release(self) -> None:
        """Free the slot. Idempotent."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.release(self._address)


class ConnectionLimits:
    """Counts connections, including those that are still in their handshake."""

    def __init__(self, most: int | None, most_per_address: int | None) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._taken = 0
        self._by_address: dict[str, int] = {}

    def __len__(self) -> int:
        return self._taken

    def acquire(self, ip: str | None) -> Slot:
        """Acquire a slot for a connection from ``ip``; raises ``Overloaded``."""
        if self._most is not None and self._taken >= self._most:
            raise Overloaded("the node has all the connections it may have")
        address = None
        if ip is not None and self._most_per_address is not None:
            address = counted_as(ip)
            here = self._by_address.get(address, 0)
            if here >= self._most_per_address:
                raise Overloaded("the address has all the connections it may have")
            self._by_address[address] = here + 1
        self._taken += 1
        return Slot(self, address)

    def release(self, address: str | None) -> None:
        """Free a slot. Called by ``Slot`` only, once."""
        self._taken -= 1
        if address is not None:
            left = self._by_address[address] - 1
            if left:
                self._by_address[address] = left
            else:
                del self._by_address[address]


def counted_as(ip: str) -> str:
    """Return the key that an address is counted under: itself, or an IPv6 address's network."""
    try:
        address = ip_address(ip)
    except ValueError:
        return ip  # a name that an authenticator or a proxy has given
    if not isinstance(address, IPv6Address):
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address), SITE), strict=False))
