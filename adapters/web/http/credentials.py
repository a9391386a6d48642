"""Keeps the credentials of a request out of the log.

The error of an authenticator may quote one: the ``KeyError`` of a table of tokens quotes the
token that is missing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from tornado.httputil import HTTPServerRequest, parse_cookie

from eyewall.application.ports.logging import shown
from eyewall.application.ports.redaction import hint_of, trace_without


def error_fields(error: BaseException, request: HTTPServerRequest) -> dict[str, Any]:
    """Return the fields of a log line for an error that a request has caused.

    The error is logged as it is, unless its text or that of its causes quotes a credential.
    """
    try:
        text = trace_without(error, _values(request))
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return {"error": shown(error), "exc_info": error}
    if text is None:
        return {"exc_info": error}
    return {"error": type(error).__name__, "traceback": text}


def hint_for(error: BaseException | None, request: HTTPServerRequest) -> str | None:
    """Return the reason of a refusal for the log; None if the error gives none."""
    return hint_of(error, _values(request))


def _values(request: HTTPServerRequest) -> Iterator[str]:
    for values in request.query_arguments.values():
        for value in values:
            yield value.decode(errors="replace")
    for name in ("Authorization", "Proxy-Authorization"):
        for field in request.headers.get_list(name):
            scheme, _, secret = field.partition(" ")
            yield secret.strip() or field
            if scheme.lower() == "basic":
                yield from _user_and_password(secret)
    for field in request.headers.get_list(
        "Sec-WebSocket-Protocol"
    ):  # a token, in some applications
        yield from map(str.strip, field.split(","))
    for field in request.headers.get_list("Cookie"):
        yield field
        yield from parse_cookie(field).values()


def _user_and_password(text: str) -> Iterator[str]:
    """Yield the credentials of Basic authentication (RFC 7617, 2), joined and each alone."""
    try:
        both = base64.b64decode(text, validate=False).decode(errors="replace")
    except (binascii.Error, ValueError):
        return
    yield from (both, *both.split(":", 1))
