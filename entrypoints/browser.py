"""The JavaScript client, as a hub serves it to browsers: in the version that fits the hub."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from eyewall.adapters.web.http.request_target import RedactingHandler

SOURCE = Path(__file__).parent / "javascript" / "eyewall.js"


class ClientHandler(RedactingHandler):
    """``/eyewall.js``."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/javascript; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        # Kept by the browser, but asked for by its ETag each time: a new hub brings a new one.
        self.set_header("Cache-Control", "no-cache")
        # A page of another origin may load it, as from any public shelf: it is the same file
        # for everybody. Whether that page may connect is up to `check_origin`.
        self.set_header("Access-Control-Allow-Origin", "*")
        self.finish(_source())

    head = get


@cache
def _source() -> bytes:
    return SOURCE.read_bytes()


def client_routes(path: str = "/eyewall.js") -> list[Any]:
    """Return Tornado rules that serve the JavaScript client at ``path``.

    A server that listens itself has them; this is for an application that is there already,
    beside ``server.routes()``.

    >>> app = tornado.web.Application([*server.routes("/ws"), *client_routes()])
    """
    return [(re.escape(path), ClientHandler)]
