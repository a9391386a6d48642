"""Python values out of bytes: the same bytes, the same value."""

from __future__ import annotations

from math import inf, isfinite, nan
from typing import Any

from eyewall.adapters.codec.json import JsonFormat
from eyewall.domain.envelope import Raw

JSON = JsonFormat()
NUMBERS = (0, -1, 127, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400)
FLOATS = (0.0, -0.0, 1.5, 1e-7, 1e308, 5e-324, inf, -inf, nan, 1e16)
DEEPEST = 20


class Dice:
    """Reads what is asked for; zeros when the bytes are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def octet(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def flag(self) -> bool:
        return bool(self.octet() & 1)

    def number(self, most: int) -> int:
        return self.octet() % (most + 1)

    def text(self, most: int) -> str:
        """Return a text of at most ``most`` octets; half a surrogate pair stays in it."""
        size = min(self.octet() * (1 + most // 256), most)
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        return part.decode(errors="surrogateescape")

    def value(self, depth: int = 0) -> Any:
        """Return what a handler might hand in, mistakes among it."""
        kind = self.octet() % 12
        if kind in (8, 9) and depth < DEEPEST:
            return [self.value(depth + 1) for _ in range(self.number(5))]
        if kind in (10, 11) and depth < DEEPEST:
            return {self.text(9): self.value(depth + 1) for _ in range(self.number(5))}
        if kind < 3:
            return (None, True, False)[kind]
        if kind == 3:
            return NUMBERS[self.number(len(NUMBERS) - 1)]
        if kind == 4:
            return FLOATS[self.number(len(FLOATS) - 1)]
        if kind == 5:
            return Raw((b"[1.10, {}]", b"null", b'"\\u00e9"')[self.number(2)], JSON)
        return self.text(40)


def is_json(value: Any, *, largest: float = inf) -> bool:
    """Whether JSON can hold it, and its numbers are at most ``largest``."""
    if isinstance(value, dict):
        return all(is_json(one, largest=largest) for one in (*value, *value.values()))
    if isinstance(value, list):
        return all(is_json(one, largest=largest) for one in value)
    if isinstance(value, str):
        return not any("\ud800" <= character < "\ue000" for character in value)
    if isinstance(value, int):
        return abs(value) <= largest
    return value is None or isinstance(value, float | Raw)


def received(value: Any) -> Any:
    """Return what is made of it on the way: JSON has no infinity and no NaN."""
    if isinstance(value, Raw):
        return value.decode()
    if isinstance(value, dict):
        return {key: received(one) for key, one in value.items()}
    if isinstance(value, list):
        return [received(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value
