"""The start page at ``/``: it shows a developer that the server runs, and sends a message.

The page is for a browser on the same machine. A request that seems to come from another machine,
through a proxy or under a public name gets 404, as if there were no page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher

from eyewall.adapters.web.http.request_target import RedactingHandler
from eyewall.version import VERSION

SOURCE: Final = Path(__file__).parent / "start_page.html"

MESSAGE: Final = '{"topic": "echo:ping", "data": {"text": "hello"}}'
"""The initial text of the input field; the README's ten lines answer it."""

_FORWARDED: Final = re.compile(
    r"(?:x-)?(?:original-)?forwarded(?:-.*)?|via|cdn-loop|x-(?:original|envoy)-.*"
    r"|(?:.*-)?(?:real|client|connecting)-ip",
    re.IGNORECASE,
)
"""Headers that a proxy adds (RFC 7239; RFC 8586; RFC 9110, 7.6.3) or is often configured to
add."""

_HOST: Final = re.compile(
    r"(?:(?P<name>(?:[a-z0-9-]+\.)*localhost|[0-9.]+)|\[(?P<six>[0-9a-f:.]+)\])(?::[0-9]+)?",
    re.IGNORECASE,
)


def is_local(request: HTTPServerRequest) -> bool:
    """Whether a request comes from a browser on this machine, and not through a proxy.

    A proxy on this machine connects from a loopback address, too. Many proxies speak HTTP/1.0 to
    their upstream. A proxy that forwards ``Host`` sends a name that is not loopback. A proxy that
    is configured for WebSockets sends ``Connection: upgrade`` without an upgrade. A proxy that
    speaks HTTP/1.1, sends a loopback ``Host`` and adds no header can't be told from a browser.
    """
    headers = request.headers
    return (
        request.version == "HTTP/1.1"
        and _is_loopback(request.remote_ip or "")
        and "upgrade" not in headers.get("Connection", "").lower()
        and not any(_FORWARDED.fullmatch(name) for name in headers)
        and _names_loopback(headers.get_list("Host"))
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _names_loopback(hosts: list[str]) -> bool:
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is None:
        return False
    name = found["name"] or found["six"]
    return name.lower().endswith("localhost") or _is_loopback(name)


class _LocalBrowser(Matcher):
    """Matches the request of a browser on this machine for the bare address."""

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        is_bare = request.path == "/" and request.method in ("GET", "HEAD")
        # A WebSocket client with a wrong path gets 404 instead of a page.
        if is_bare and "Upgrade" not in request.headers and is_local(request):
            return {}
        return None


class StartPage(RedactingHandler):
    """Answers ``/`` for a browser on this machine."""

    def get(self) -> None:
        secure = self.request.protocol == "https"
        socket = f"{'wss' if secure else 'ws'}://{self.request.host}"
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", _content_security_policy(socket))
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.finish(_source().replace("{{url}}", escape(f"{socket}/ws")))

    head = get


def _content_security_policy(socket: str) -> str:
    """Return a policy that allows the page's own script and style, by hash, and its socket."""
    script, style = (
        b64encode(sha256(_between(tag).encode()).digest()).decode() for tag in ("script", "style")
    )
    # 'self' includes the socket, but not in older browsers. A policy can't name an IPv6 address
    # at all (CSP 3, 2.3.1).
    named = "" if "[" in socket else f" {socket}"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{script}'",
            f"style-src 'sha256-{style}'",
            "img-src data:",
            f"connect-src 'self'{named}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )


@cache
def _source() -> str:
    text = SOURCE.read_text(encoding="utf-8")
    return text.replace("{{version}}", escape(VERSION)).replace("{{message}}", escape(MESSAGE))


@cache
def _between(tag: str) -> str:
    return _source().partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]


def start_page() -> list[Any]:
    """Return Tornado rules for the page. They come after those of the application."""
    return [(_LocalBrowser(), StartPage)]
