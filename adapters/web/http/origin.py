"""Checks ``Origin`` and ``Host``: the defence against cross-site WebSocket hijacking.

A browser sends the page's origin with every handshake, and this server's cookies whatever the
page is. A client that is no browser sends no ``Origin`` and is allowed.

In a DNS rebinding attack, the name of a foreign page resolves to this machine, and the page has
the same origin as the server. Its ``Host`` gives it away: ``Hosts`` checks that.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from eyewall.domain.handshake import Handshake

OriginCheck = Callable[[str, Handshake], bool | Awaitable[bool]]
OriginRule = None | OriginCheck | Collection[str]
"""None allows the same origin only. A callable decides alone. A list names origins, with
wildcards, that are allowed beside the same origin; ``self`` in it is the same origin, and
``none``, which stands alone, allows no page."""

SELF: Final = "self"
NONE: Final = "none"

_OPAQUE = re.compile(r"null|[a-z][a-z0-9+.-]*://")
"""Origins without a host, of sandboxed frames and of files, say. Listing one allows every page
of that kind."""

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


class Origins:
    """Decides whether the origin of a handshake is allowed. Raises ``ValueError`` for a rule
    that can match nothing."""

    def __init__(self, rule: OriginRule = None) -> None:
        self._decide = rule if callable(rule) else None
        self._allows_same_origin = True
        self._patterns: list[Callable[[str], bool]] = []
        if rule is None or callable(rule):
            return
        if isinstance(rule, str):
            raise ValueError("check_origin must be a list of origins, not one string")
        words = {text.lower() for text in rule} & {SELF, NONE}
        if NONE in words and len(rule) > 1:
            raise ValueError(
                'check_origin: "none" lets no page in, and stands alone; a callable can let in '
                "some and not the server's own"
            )
        self._allows_same_origin = NONE not in words
        self._patterns = [_pattern(text) for text in rule if text.lower() not in words]

    def allow(
        self, origins: Sequence[str], handshake: Handshake, hosts: Sequence[str] | None = None
    ) -> bool | Awaitable[bool]:
        """Return whether a handshake is allowed, or an awaitable for that.

        ``origins`` are the values of ``Origin``: none, or one. ``hosts`` are the names under
        which the client may have requested the server; None stands for its ``Host``.
        """
        if not origins:
            return True
        if len(origins) > 1:
            return False
        origin = origins[0]
        if self._decide is not None:
            return self._decide(origin, handshake)
        if any(matches(origin) for matches in self._patterns):
            return True
        names = handshake.headers.all("Host") if hosts is None else hosts
        return self._allows_same_origin and any(_is_same(origin, host) for host in names)

    def why_refused(self, origins: Sequence[str], hosts: Sequence[str]) -> str:
        """Return a hint for the log: why these origins were refused, and what helps.

        ``hosts`` are the names that they were compared with: ``Host``, and the
        ``X-Forwarded-Host`` of a trusted proxy.
        """
        if len(origins) > 1:
            return "more than one Origin"
        if self._decide is not None:
            return f"check_origin said no to origin {origins[0]}"
        if not self._allows_same_origin:  # the origin may be the server's own
            return f'origin {origins[0]} is not let in: check_origin is "none"'
        host, *told = hosts or [""]
        hint = f"origin {origins[0]} is not Host {host}"
        if told:
            hint += f", nor X-Forwarded-Host {told[0]}"
        if self._patterns:
            hint += ", nor in check_origin"
        return f"{hint}: list it in check_origin, or have the proxy in front pass Host on"


def _parse(text: str) -> _Origin | None:
    """Return the parts of an origin; None for other text, such as ``null``."""
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        return None
    extra = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    if not parts.scheme or not parts.hostname or extra:
        return None
    return _Origin(parts.scheme, parts.hostname, port or DEFAULT_PORTS.get(parts.scheme))


def _is_same(text: str, host: str) -> bool:
    origin = _parse(text)
    # The scheme of the page replaces the server's, which is unknown behind a proxy.
    if origin is None or origin.scheme not in DEFAULT_PORTS:
        return False  # not a web page
    return origin == _parse(f"{origin.scheme}://{host}")


def _pattern(text: str) -> Callable[[str], bool]:
    """Return a function that matches an allowed origin, such as ``https://*.example.com``."""
    if text == "*":
        return lambda _: True
    if _OPAQUE.fullmatch(text.lower()) is not None:
        return lambda origin: origin.lower() == text.lower()
    allowed = _parse(text)
    if allowed is None:
        raise ValueError(f"check_origin: {text!r} is no origin, such as https://*.example.com")
    hosts = re.compile(re.escape(allowed.host).replace(r"\*", r"[^/@:]*"))

    def matches(origin_text: str) -> bool:
        origin = _parse(origin_text)
        return (
            origin is not None
            and (origin.scheme, origin.port) == (allowed.scheme, allowed.port)
            and hosts.fullmatch(origin.host) is not None
        )

    return matches


class Hosts:
    """Decides whether the ``Host`` of a request is served.

    ``rule`` lists names or addresses, with ``*`` wildcards, and with a port if only that port is
    served. None serves every host. Raises ``ValueError`` for text that is no host.
    """

    def __init__(self, rule: Collection[str] | None = None) -> None:
        if isinstance(rule, str):
            raise ValueError("allowed_hosts must be a list of hosts, not one string")
        self._allowed = None if rule is None else [_host_pattern(text) for text in rule]

    def allow(self, hosts: Sequence[str]) -> bool:
        """Return whether the values of a request's ``Host`` are allowed: exactly one must be."""
        if self._allowed is None:
            return True
        host = _parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return False
        return any(
            name.fullmatch(host[0]) is not None and (ports is None or host[1] in ports)
            for name, ports in self._allowed
        )


def _parse_host(text: str) -> tuple[str, int | None] | None:
    """Return name and port of a ``Host``; None if it is malformed."""
    text = text.strip().lower()
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"  # an IPv6 address without brackets
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.netloc != text or "@" in text:
        return None
    return parts.hostname.removesuffix("."), port


def _host_pattern(text: str) -> tuple[re.Pattern[str], set[int | None] | None]:
    host = _parse_host(text)
    if host is None:
        raise ValueError(f"allowed_hosts: {text!r} is no host, such as app.example.com")
    name, port = host
    # Clients leave out the default port of their scheme, which is unknown behind a proxy.
    ports: set[int | None] | None = None if port is None else {port}
    if ports is not None and port in (80, 443):
        ports.add(None)
    return re.compile(re.escape(name).replace(r"\*", r"[^/@:]*")), ports
