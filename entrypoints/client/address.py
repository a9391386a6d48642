"""The address, headers and tokens of a client: validated, and redacted in texts.

Rules of this file:

1. An error about an address, a header or a token does not quote it: it may be a secret.
2. A foreign text (of a library, a server) is shown cut, on one line, and without the secrets
   of the address and its headers.
"""

from __future__ import annotations

import re
import ssl as tls
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

MAX_SHOWN: Final = 300
"""Characters of a foreign text."""

MIN_SECRET: Final = 4
"""Characters: a shorter secret would be masked in the middle of words."""

MASK: Final = "***"

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.1
_SECRETS_IN_TEXT: Final = (
    (re.compile(r"((?:[a-z][a-z0-9+.-]*://)?)\S*@", re.IGNORECASE), rf"\g<1>{MASK}@"),
    (re.compile(r"([?&][^=&#\s\"']*=)[^&#\s\"']*"), rf"\g<1>{MASK}"),
    (re.compile(r"(\b(?:bearer|basic)\s+)\S+", re.IGNORECASE), rf"\g<1>{MASK}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a hub, and how to connect. Times in seconds, sizes in bytes."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    ssl: tls.SSLContext | None
    timeout: float
    """From the connect to the welcome."""
    heartbeat: float
    """Between two pings; without a pong for as long the connection is cut."""
    max_message_size: int

    def redact(self, text: object, token: str | None = None) -> str:
        """Return a foreign text without the secrets of this address and ``token``."""
        said = " ".join(str(text).split())
        for secret in self._secrets(token):
            if len(secret) >= MIN_SECRET:
                said = said.replace(secret, MASK)
        return _mask(said[: 4 * MAX_SHOWN])[:MAX_SHOWN]

    def _secrets(self, token: str | None) -> Iterator[str]:
        parts = urlsplit(self.url)
        yield from filter(None, (token, parts.username, parts.password))
        for _, value in parse_qsl(parts.query):
            yield value
        for value in self.headers.values():
            yield value
            yield value.rpartition(" ")[2]


def valid_url(url: object) -> str:
    """Return the address of a hub; raises ``ValueError``, without the address in its text.

    The host is not looked up.
    """
    if not isinstance(url, str) or not url.strip().lower().startswith(("ws://", "wss://")):
        raise ValueError("url must begin with ws:// or wss://")
    text = url.strip()
    if not is_header_safe(text) or " " in text:
        raise ValueError("url must have no spaces and no control characters")
    try:
        parts = urlsplit(text)
        _check(parts)
    except ValueError:  # its text quotes the address
        raise ValueError("url must be like wss://HOST[:PORT][/PATH]") from None
    if "#" in text:
        raise ValueError("url must have no fragment (#)")
    return text


def _check(parts: SplitResult) -> None:
    if not parts.hostname or parts.port == 0:
        raise ValueError
    for name in (parts.username, parts.password):
        unquote(name or "", errors="strict")
    if parts.username is not None and parts.password is None:
        raise ValueError


def valid_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers that can be sent; raises ``ValueError``, without values in its text."""
    found = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
            raise ValueError("headers: a name must be a token (RFC 9110, 5.1)")
        if not isinstance(value, str) or not is_header_safe(value.strip()):
            raise ValueError(f"headers: {name} must be a text without control characters")
        found[name] = value.strip()
    return found


def valid_token(token: str) -> str:
    """Return a token without the white space around it.

    Raises ``ValueError``, without the token in its text, if it can't be sent.
    """
    text = token.strip()
    if not text or not is_header_safe(text):
        raise ValueError("a token must be a text that is not empty, without control characters")
    return text


def is_header_safe(text: str) -> bool:
    """Return whether it has no control characters, line separators and lone surrogates."""
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


def redacted_url(url: str) -> str:
    """Return an address without its query, user and password."""
    return _mask(url.partition("?")[0])


def _mask(text: str) -> str:
    for pattern, masked in _SECRETS_IN_TEXT:
        text = pattern.sub(masked, text)
    return text
