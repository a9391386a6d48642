"""What a client has shown to get in, kept out of logs.

An application's authenticator may fail with it in its text: ``KeyError`` of a table of tokens
quotes the token that is not in it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, Final

from tornado.httputil import HTTPServerRequest, parse_cookie

from eyewall.adapters.web.target import MASK
from eyewall.application.logs import shown

SHORTEST: Final = 6
"""Characters of a value that may be a secret. A shorter one is also in texts that have nothing
to do with it, and would tell itself by being masked there."""


def reported(error: BaseException, request: HTTPServerRequest) -> dict[str, Any]:
    """Return the fields of a log line for an error that a request has led to.

    It is handed on as it is, unless its text or what led to it shows a credential.
    """
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return {"error": shown(error), "exc_info": error}
    seen = f"{text}{shown(error)}"
    secrets = sorted({found for found in _of(request) if found in seen}, key=len, reverse=True)
    if not secrets:
        return {"exc_info": error}
    for secret in secrets:
        text = text.replace(secret, MASK)
    return {"error": type(error).__name__, "traceback": text}


def _of(request: HTTPServerRequest) -> Iterator[str]:
    for value in _values(request):
        if len(value) >= SHORTEST:
            yield value
            yield repr(value)[1:-1]


def _values(request: HTTPServerRequest) -> Iterator[str]:
    for values in request.query_arguments.values():
        for value in values:
            yield value.decode(errors="replace")
    for name in ("Authorization", "Proxy-Authorization"):
        for field in request.headers.get_list(name):
            yield field.partition(" ")[2].strip() or field
    for field in request.headers.get_list("Sec-WebSocket-Protocol"):  # some carry a token in it
        yield from map(str.strip, field.split(","))
    for field in request.headers.get_list("Cookie"):
        yield field
        yield from parse_cookie(field).values()
