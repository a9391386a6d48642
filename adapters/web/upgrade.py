"""What a handshake has to say, and what it is answered (RFC 6455, 4.2).

Whatever goes wrong before the connection is open is answered in HTTP (protocol.md,
"Handshake").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from typing import Final

from tornado.httputil import HTTPHeaders

from eyewall.domain.errors import wait_of
from eyewall.domain.handshake import RefusalReason

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

MAX_HEADERS: Final = 100
"""Header fields of a handshake. A browser behind two proxies sends some thirty; each one
is looked at, and kept while an authenticator waits."""


CUT_OFF: Final = (
    "a WebSocket handshake came without its upgrade: the proxy in front must speak HTTP/1.1, "
    "and pass Upgrade and Connection on"
)


class Refusal(Exception):
    """The handshake ends with this answer."""

    def __init__(
        self,
        reason: RefusalReason,
        status: int,
        text: str,
        *,
        hint: str | None = None,
        **headers: str,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        self.hint = hint
        """What the log says of it beside, for whoever runs the server."""
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def busy(
    retry_after: float, reason: RefusalReason = RefusalReason.OVERLOADED, **headers: str
) -> Refusal:
    """Come back after so many seconds."""
    wait = str(max(1, math.ceil(wait_of(retry_after))))
    return Refusal(reason, 503, "try again later", Retry_After=wait, **headers)


def draining() -> Refusal:
    """Come back to another node, or when this one runs again."""
    return busy(1.0, RefusalReason.DRAINING, Connection="close")


def check_number(headers: HTTPHeaders) -> None:
    """Raise ``Refusal`` if there are more fields than anybody needs."""
    if sum(1 for _ in headers.get_all()) > MAX_HEADERS:
        raise Refusal(RefusalReason.HEADERS, 431, f"more than {MAX_HEADERS} header fields")


def accept_key(method: str | None, headers: HTTPHeaders, http: str = "HTTP/1.1") -> str:
    """Check that this is an upgrade (RFC 6455, 4.2.1); returns the key to answer with.

    ``http`` is the version of the request: in 1.0 an ``Upgrade`` means nothing (RFC 9110, 7.8).
    """
    upgrade = {token.strip().lower() for token in headers.get("Upgrade", "").split(",")}
    connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    version = headers.get("Sec-WebSocket-Version", "").strip()
    asked = method == "GET" and http != "HTTP/1.0"
    asked = asked and "websocket" in upgrade and "upgrade" in connection
    if not asked or version != "13":
        raise Refusal(
            RefusalReason.NOT_AN_UPGRADE,
            426,
            "this is a WebSocket (version 13)",
            hint=None if asked or "Sec-WebSocket-Key" not in headers else CUT_OFF,
            Upgrade="websocket",
            Connection="Upgrade",
            Sec_WebSocket_Version="13",
        )
    key = headers.get("Sec-WebSocket-Key", "").strip()
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise Refusal(RefusalReason.KEY, 400, "Sec-WebSocket-Key must be 16 bytes in base64")
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()  # noqa: S324


def answer(accept: str, subprotocol: str | None, extensions: str | None) -> bytes:
    """Return the 101."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept}",
    ]
    if subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if extensions is not None:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    return "\r\n".join([*lines, "", ""]).encode()
