"""Which web pages may connect: the defence against cross-site WebSocket hijacking.

A browser names the page's origin in every handshake, and sends the cookies of ours
with it whatever the page is. What is no browser sends no ``Origin`` and is let in.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from eyewall.domain.handshake import Handshake

OriginCheck = Callable[[str, Handshake], bool | Awaitable[bool]]
OriginRule = None | OriginCheck | Sequence[str]
"""None: the same origin only. Or a callable, or a list of origins with wildcards."""

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


class Origins:
    """Says whether the origin of a handshake is allowed."""

    def __init__(self, rule: OriginRule = None) -> None:
        self._check: OriginCheck = _same_origin
        if rule is None:
            return
        if callable(rule):
            self._check = rule
            return
        if isinstance(rule, str):
            raise ValueError("check_origin must be a list of origins, not one string")
        patterns = [_pattern(text) for text in rule]
        self._check = lambda origin, _: any(matches(origin) for matches in patterns)

    def allow(self, origins: Sequence[str], handshake: Handshake) -> bool | Awaitable[bool]:
        """``origins`` are the values of the ``Origin`` header: none, or else just one."""
        if not origins:
            return True
        if len(origins) > 1:
            return False
        return self._check(origins[0], handshake)


def _parse(text: str) -> _Origin | None:
    """Return the parts of an origin; None if it is anything else, such as ``null``."""
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        return None
    extra = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    if not parts.scheme or not parts.hostname or extra:
        return None
    return _Origin(parts.scheme, parts.hostname, port or DEFAULT_PORTS.get(parts.scheme))


def _same_origin(text: str, handshake: Handshake) -> bool:
    origin = _parse(text)
    host = handshake.headers.get("Host")
    # The page's scheme stands in for ours: behind a proxy nobody here knows it.
    return origin is not None and host is not None and origin == _parse(f"{origin.scheme}://{host}")


def _pattern(text: str) -> Callable[[str], bool]:
    """Return what matches an allowed origin, such as ``https://*.example.com``."""
    if text == "*":
        return lambda _: True
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
