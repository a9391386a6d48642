"""What a client has shown to get in, kept out of logs.

An application's authenticator may fail with it in its text: ``KeyError`` of a table of tokens
quotes the token that is not in it.
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
    """Return the fields of a log line for an error that a request has led to.

    It is handed on as it is, unless its text or what led to it shows a credential.
    """
    try:
        text = trace_without(error, _values(request))
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return {"error": shown(error), "exc_info": error}
    if text is None:
        return {"exc_info": error}
    return {"error": type(error).__name__, "traceback": text}


def hint_for(error: BaseException | None, request: HTTPServerRequest) -> str | None:
    """Return what the log may say of why a request was refused; None if there is nothing."""
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
    for field in request.headers.get_list("Sec-WebSocket-Protocol"):  # some carry a token in it
        yield from map(str.strip, field.split(","))
    for field in request.headers.get_list("Cookie"):
        yield field
        yield from parse_cookie(field).values()


def _user_and_password(text: str) -> Iterator[str]:
    """Yield the credentials of RFC 7617, 2, as one text and each by itself."""
    try:
        both = base64.b64decode(text, validate=False).decode(errors="replace")
    except (binascii.Error, ValueError):
        return
    yield from (both, *both.split(":", 1))
