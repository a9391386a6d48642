"""The chat's page, served as it lies on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.web import StaticFileHandler

from eyewall.adapters.web.http.request_target import RedactingHandler
from eyewall.browser import client_routes

# Resolved, because in an editable install the files are links, which Tornado would not follow.
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
    """One of the page's files; nothing on the page comes from anywhere else."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")
        # Kept by the browser, but asked for by its ETag each time.
        self.set_header("Cache-Control", "no-cache")


def pages() -> list[Any]:
    """Return Tornado's routes for the page: the index at ``/``, its files beside it.

    One of them is the JavaScript client, which the page speaks through.
    """
    files = {"path": str(STATIC), "default_filename": "index.html"}
    return [*client_routes(), (r"/((?:[a-z]+\.(?:css|js|svg))?)", Page, files)]
