"""The upgrade request of a client, without a web framework's types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class RefusalReason(StrEnum):
    """Why a handshake was refused. ``HubStats.refused`` and the metrics count by it."""

    MALFORMED = "malformed"
    """400: not a valid HTTP/1.1 request."""
    KEY = "key"
    """400: an upgrade without a valid ``Sec-WebSocket-Key``."""
    NOT_AN_UPGRADE = "not_an_upgrade"
    """426: no upgrade to a WebSocket of version 13."""
    HEADERS = "headers"
    """431: too many header fields, or too many bytes of them."""
    HOST = "host"
    """403: the ``Host`` is not in ``allowed_hosts``."""
    ORIGIN = "origin"
    """403: a page of another origin."""
    UNAUTHORIZED = "unauthorized"
    """401, or a close with 4504 (``refuse_with="close"``): the authenticator refused."""
    ORIGIN_CHECK_FAILED = "origin_check_failed"
    """500: ``check_origin`` raised an error."""
    AUTHENTICATOR_FAILED = "authenticator_failed"
    """500: the authenticator raised an unexpected error."""
    INTERNAL = "internal"
    """500: a fault of the server."""
    UNAVAILABLE = "unavailable"
    """503: the authenticator raised ``Unavailable``."""
    OVERLOADED = "overloaded"
    """503: the authenticator raised ``Overloaded``, or too many handshakes are in flight."""
    RATE_LIMITED = "rate_limited"
    """503: the authenticator raised ``RateLimited``."""
    CONNECTIONS = "connections"
    """503: a limit on connections is reached."""
    DRAINING = "draining"
    """503: the server is not running yet, or is draining."""
    TIMEOUT = "timeout"
    """The handshake did not complete in time, and the connection was closed."""


class RefuseWith(StrEnum):
    """How a client is told that the authenticator refused it: the values of ``refuse_with``."""

    HTTP = "http"
    """HTTP 401. A script in a browser sees only a close with 1006."""
    CLOSE = "close"
    """The upgrade is accepted, and closed with 4504 ``auth_failed`` at once."""


def refuse_with(value: object) -> RefuseWith:
    """Return the option's value; raises ``ValueError`` for an unknown one."""
    if isinstance(value, str) and value in set(RefuseWith):
        return RefuseWith(value)
    words = " or ".join(repr(word.value) for word in RefuseWith)
    raise ValueError(f"refuse_with must be {words}, not {value!r:.80}")


Given = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values: a mapping, or pairs where a name may come several times."""

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Fields(Mapping[str, str]):
    """Names with one or more values; ``get`` and ``[]`` give the first one."""

    __slots__ = ("_values",)

    def __init__(self, pairs: Given = ()) -> None:
        self._values = values = dict[str, list[str]]()
        key = self._key
        for name, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
            known = values.get(of := key(name))
            if known is None:
                values[of] = [value]
            else:
                known.append(value)

    @staticmethod
    def _key(name: str) -> str:
        return name

    def __getitem__(self, name: str) -> str:
        return self._values[self._key(name)][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def all(self, name: str) -> list[str]:
        """Return every value of ``name``, in the order in which they came."""
        return list(self._values.get(self._key(name), ()))

    def __repr__(self) -> str:
        # Values may be credentials, and "?TOKEN" is a name without a value: only the names
        # that have a value are shown.
        names = sorted(name for name, values in self._values.items() if any(values))
        return f"{type(self).__name__}({names})"


class Headers(Fields):
    """HTTP header fields: names without regard to case (RFC 9110, 5.1)."""

    @staticmethod
    def _key(name: str) -> str:
        return name.lower()


@dataclass(frozen=True, slots=True)
class Handshake:
    r"""An upgrade request. ``ip`` is the client's, by way of trusted proxies only.

    ``path`` is percent-encoded, as the client sent it; ``params`` has the decoded values of
    the named groups of ``server.routes(r"/b/(?P<room>\w+)")``.
    """

    path: str
    query: Fields
    headers: Headers
    cookies: Mapping[str, str] = field(repr=False)
    ip: str | None
    subprotocols: tuple[str, ...] = field(repr=False)  # some carry a token in one
    params: Mapping[str, str]

    # Written out, because a test or a user may hand in plain mappings.
    def __init__(
        self,
        path: str = "/ws",
        query: Given = (),
        headers: Given = (),
        cookies: Mapping[str, str] = _NOTHING,
        ip: str | None = None,
        subprotocols: Iterable[str] = (),
        params: Mapping[str, str] = _NOTHING,
    ) -> None:
        put = object.__setattr__
        put(self, "path", path)
        put(self, "query", query if isinstance(query, Fields) else Fields(query))
        put(self, "headers", headers if isinstance(headers, Headers) else Headers(headers))
        put(self, "cookies", cookies)
        put(self, "ip", ip)
        put(self, "subprotocols", tuple(subprotocols))
        put(self, "params", params)
