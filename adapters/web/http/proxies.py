"""Trusted proxies: the client's address and host, from ``X-Forwarded-For`` and ``-Host``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address


class TrustedProxies:
    """The addresses or networks of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Host``
    are trusted. Raises ``ValueError`` for text that is neither.
    """

    def __init__(self, trusted: Collection[str] = ()) -> None:
        if isinstance(trusted, str):
            raise ValueError("trusted_proxies must be a list of addresses, not one string")
        try:
            self._networks = [ip_network(text, strict=False) for text in trusted]
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}") from None

    def client(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """Return the client's address: the nearest one that is no trusted proxy's.

        ``peer`` is the address of the TCP connection. ``forwarded`` are the values of
        ``X-Forwarded-For``, each a list with the farthest address first. Every proxy appends the
        address of its client, so only the end of the list, written by trusted proxies, counts.
        """
        if peer and not self._networks and ":" not in peer:
            return peer  # an IPv4 address, as the kernel writes it
        nearest = _parse(peer or "")
        if nearest is None:
            return None
        hops = [_parse(hop) for value in forwarded for hop in value.split(",")]
        while hops and self._trusts(nearest):
            hop = hops.pop()
            if hop is None:
                break
            nearest = hop
        return str(nearest)

    def hosts(self, peer: str | None, host: Sequence[str], forwarded: Sequence[str]) -> list[str]:
        """Return the names under which the client may have requested the server.

        ``host`` are the values of ``Host``. ``forwarded`` are those of ``X-Forwarded-Host``: the
        original ``Host``, from a proxy that changes it. A client that is no browser can forge
        it and gains nothing, because it could leave out ``Origin`` as well.
        """
        if not forwarded or not self._networks:
            return list(host)
        nearest = _parse(peer or "")
        if nearest is None or not self._trusts(nearest):
            return list(host)
        return [*host, forwarded[0].partition(",")[0].strip()]

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _parse(text: str) -> Address | None:
    """Return an address without the port that some proxies add; None for other text."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
