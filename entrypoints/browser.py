"""Serves the JavaScript client to browsers, in the version of the hub."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from eyewall.adapters.web.http.request_target import RedactingHandler

SOURCE = Path(__file__).parent / "javascript" / "eyewall.js"


class ClientHandler(RedactingHandler):
    """Answers ``/eyewall.js``."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/javascript; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        # The browser caches the file and validates its ETag: a new hub has a new file.
        self.set_header("Cache-Control", "no-cache")
        # Pages of all origins may load the file: it is public. `check_origin` decides whether
        # such a page may connect.
        self.set_header("Access-Control-Allow-Origin", "*")
        self.finish(_source())

    head = get


@cache
def _source() -> bytes:
    return SOURCE.read_bytes()


def client_routes(path: str = "/eyewall.js") -> list[Any]:
    """Return Tornado rules that serve the JavaScript client at ``path``.

    A server that listens has them already. They are for a Tornado application with
    ``server.routes()``.

    >>> app = tornado.web.Application([*server.routes("/ws"), *client_routes()])
    """
    return [(re.escape(path), ClientHandler)]
