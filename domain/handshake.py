"""What a client says when it knocks, in plain words: no web framework's types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


class Fields(Mapping[str, str]):
    """Names with one or more values; ``get`` and ``[]`` give the first one."""

    __slots__ = ("_values",)

    def __init__(self, pairs: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
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
        # Values may be credentials: only the names are shown.
        return f"{type(self).__name__}({sorted(self._values)})"


class Headers(Fields):
    """HTTP header fields: names without regard to case (RFC 9110, 5.1)."""

    @staticmethod
    def _key(name: str) -> str:
        return name.lower()


@dataclass(frozen=True, slots=True)
class Handshake:
    """An upgrade request. ``ip`` is the client's, by way of trusted proxies only."""

    path: str = "/ws"
    query: Fields = field(default_factory=Fields)
    headers: Headers = field(default_factory=Headers)
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)
    ip: str | None = None
    subprotocols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A test or a user may hand in plain mappings.
        query: object = self.query
        headers: object = self.headers
        if not isinstance(query, Fields):
            object.__setattr__(self, "query", Fields(query))  # type: ignore[arg-type]
        if not isinstance(headers, Headers):
            object.__setattr__(self, "headers", Headers(headers))  # type: ignore[arg-type]
        object.__setattr__(self, "subprotocols", tuple(self.subprotocols))
