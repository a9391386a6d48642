"""Negotiates permessage-deflate (RFC 7692, 5 and 7.1).

Rules of this file:

1. The offers are tried in the client's order, and the first acceptable one is accepted. If none
   is, the connection is uncompressed; that is no error.
2. An offer is skipped if it is malformed, or if a parameter is unknown, repeated or has a wrong
   value.
3. Neither side keeps a context between messages. The server does not, because a message is
   compressed once for all its receivers. The client may not, because the server would hold a
   window for each client while it is silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

NAME: Final = "permessage-deflate"

RESPONSE: Final = f"{NAME}; server_no_context_takeover; client_no_context_takeover"

_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 6455, 9.1: a quoted value must be a token too, so commas and semicolons only separate.
_PARAMETER: Final = re.compile(rf'({_WORD})(?:[ \t]*=[ \t]*(?:({_WORD})|"({_WORD})"))?')
_BITS: Final = re.compile(r"[89]|1[0-5]")  # no leading zeros

_FLAGS: Final = frozenset({"server_no_context_takeover", "client_no_context_takeover"})
_WINDOWS: Final = frozenset({"server_max_window_bits", "client_max_window_bits"})

SHARED_WINDOW_BITS: Final = "15"
"""The window that shared messages are compressed with, in bits: 32 KiB."""


def negotiate(headers: Iterable[str]) -> str | None:
    """Return the answer to the offers in ``Sec-WebSocket-Extensions``; None if none is
    acceptable."""
    for header in headers:
        for offer in header.split(","):
            name, *parameters = (part.strip(" \t") for part in offer.split(";"))
            if name != NAME:
                continue
            wanted = _read(parameters)
            if wanted is not None and _is_acceptable(wanted):
                return _response(wanted)
    return None


def _read(parameters: Iterable[str]) -> dict[str, str | None] | None:
    """Return an offer's parameters; None if one of them is wrong."""
    wanted: dict[str, str | None] = {}
    for parameter in parameters:
        found = _PARAMETER.fullmatch(parameter)
        if found is None or found[1] in wanted:
            return None
        name, value = found[1], found[2] or found[3]
        if not _is_valid(name, value):
            return None
        wanted[name] = value
    return wanted


def _is_valid(name: str, value: str | None) -> bool:
    if name in _FLAGS:
        return value is None
    if name not in _WINDOWS:
        return False
    if value is None:
        return name == "client_max_window_bits"  # the client could limit its window
    return _BITS.fullmatch(value) is not None


def _is_acceptable(wanted: Mapping[str, str | None]) -> bool:
    # A smaller window would need a second compression of every message.
    return wanted.get("server_max_window_bits", SHARED_WINDOW_BITS) == SHARED_WINDOW_BITS


def _response(wanted: Mapping[str, str | None]) -> str:
    """Return the response that accepts an offer. It names a window only if the offer does:
    another client may not know the parameter."""
    answer = RESPONSE
    for name in sorted(_WINDOWS):
        if (value := wanted.get(name)) is not None:
            answer += f"; {name}={value}"
    return answer
