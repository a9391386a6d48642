"""Serves the web page of the chat from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.web import StaticFileHandler

from eyewall.adapters.web.http.request_target import RedactingHandler
from eyewall.browser import client_routes

# Resolved: an editable install has links, which Tornado does not follow.
STATIC = Path(__file__).resolve().parent / "static"

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "connect-src 'self' ws: wss:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)


class Page(RedactingHandler, StaticFileHandler):
    """Serves one file of the page; the policy allows no other sources."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")
        # The browser caches the file and validates its ETag each time.
        self.set_header("Cache-Control", "no-cache")


def pages() -> list[Any]:
    """Return Tornado rules for the page: the index at ``/`` and its files, with the JavaScript
    client."""
    files = {"path": str(STATIC), "default_filename": "index.html"}
    return [*client_routes(), (r"/((?:[a-z]+\.(?:css|js|svg))?)", Page, files)]
