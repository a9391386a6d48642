"""The forms of a setting's value, as marshmallow fields.

Rules of this file:

1. A value is typed (from a file or from code) or text (from the environment). One parser reads
   both; parsing its own result again changes nothing.
2. The message of a mistake is "expected FORM, not VALUE". It never has the value of a secret.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Collection, Mapping, Set
from datetime import timedelta
from pathlib import Path
from typing import Any

import marshmallow
from marshmallow import fields

from eyewall.adapters.web.http.origin import NONE, Origins
from eyewall.domain.commands import COMMANDS, commands_of
from eyewall.domain.identity import MAX_NAME, ConnMeta, is_printable

_OFF = frozenset({"off", "none", "null"})
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_LONGEST_SHOWN = 60  # characters of a wrong value in a message: enough to find it


class Value(fields.Field[Any]):
    """A field whose value is what ``parse`` returns; ``form`` describes it in messages.

    ``parse`` raises ``TypeError`` or ``ValueError``. An ``optional`` field may be None, in text
    one of the words of ``off``. The value of a ``secret`` field is in no message.
    """

    def __init__(
        self,
        parse: Callable[[Any], Any],
        form: str,
        *,
        optional: bool = False,
        secret: bool = False,
        off: Collection[str] = _OFF,
    ) -> None:
        form = f"{form}, or off" if optional else form
        super().__init__(allow_none=optional, error_messages={"null": f"expected {form}, not null"})
        self.parse = parse
        self._form = form
        self._secret = secret
        self._off = off

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if self.allow_none and isinstance(value, str) and value.lower() in self._off:
            return None
        try:
            return self.parse(value)
        except (TypeError, ValueError):
            shown = "the value is not shown" if self._secret else f"not {_shown(value)}"
            raise marshmallow.ValidationError(f"expected {self._form}, {shown}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def whole(least: int = 1, most: float = math.inf, *, optional: bool = False) -> Value:
    """Return a field for a whole number between ``least`` and ``most``."""

    def parse(value: Any) -> int:
        # int() would accept True and cut 2.5.
        if isinstance(value, (bool, float)):
            raise TypeError
        number = int(value)
        if not least <= number <= most:
            raise ValueError
        return number

    bound = f"of at least {least}" if most == math.inf else f"from {least} to {most:g}"
    return Value(parse, f"a whole number {bound}", optional=optional)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, timedelta):
        return value.total_seconds()
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def number(least: float | None = None, *, optional: bool = False, unit: str = "") -> Value:
    """Return a field for a number above 0, or of at least ``least``."""

    def parse(value: Any) -> float:
        found = _number(value)
        if found <= 0 or (least is not None and found < least):
            raise ValueError
        return found

    bound = "above 0" if least is None else f"of at least {least:g}"
    return Value(parse, f"a number{unit} {bound}", optional=optional)


def seconds(*, zero: bool = False) -> Value:
    """Return a field for seconds above 0, with ``zero`` also for 0."""

    def parse(value: Any) -> float:
        found = _number(value)
        if found < 0 or (found == 0 and not zero):
            raise ValueError
        return found

    return Value(parse, f"seconds, {'at least' if zero else 'above'} 0, such as 2.5")


def flag() -> Value:
    """Return a field for true or false."""

    def parse(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        word = value.lower() if isinstance(value, str) else ""
        if word not in _TRUE | _FALSE:
            raise ValueError
        return word in _TRUE

    return Value(parse, "true or false")


def choice(*words: str, what_is: str = "") -> Value:
    """Return a field for one of ``words``; ``what_is`` explains why there are no more."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError
        return value.lower()

    listed = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return Value(parse, listed + what_is)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not is_printable(value):
        raise ValueError
    return value


def text(*, optional: bool = False) -> Value:
    """Return a field for one line of printable characters."""
    return Value(_text, "a line of text", optional=optional)


def host() -> Value:
    """Return a field for a host to listen on; an empty text means all addresses."""
    return Value(lambda value: value if value == "" else _text(value), "a line of text")


def name(*, optional: bool = False) -> Value:
    """Return a field for the name of a node or channel."""

    def parse(value: Any) -> str:
        if len(_text(value)) > MAX_NAME:
            raise ValueError
        return str(value)

    return Value(parse, f"1 to {MAX_NAME} printable characters", optional=optional)


def secret() -> Value:
    """Return a field for a secret: any text (PEM keys have several lines), or off."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise TypeError
        return value

    return Value(parse, "a text", optional=True, secret=True)


def file() -> Value:
    """Return a field for the path of an existing file, or off."""

    def parse(value: Any) -> str:
        path = Path(_text(value)).expanduser()
        if not path.is_file():
            raise ValueError
        return str(path)

    return Value(parse, "the path of an existing file", optional=True)


def words(form: str, check: Callable[[str], object] = _text, *, optional: bool = False) -> Value:
    """Return a field for several texts: a list, or one comma-separated text.

    ``check`` raises ``ValueError`` for a word that does not fit ``form``.
    """

    def parse(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [word.strip() for word in value.split(",") if word.strip()]
        if not isinstance(value, list | tuple | Set):
            raise TypeError
        for word in value:
            check(_text(word))
        # Sorted, because a set has no order, and settings are shown and compared.
        return tuple(sorted(value)) if isinstance(value, Set) else tuple(value)

    return Value(parse, f"a list of {form}", optional=optional)


def commands() -> Value:
    """Return a field for ``client_commands``: true, false, or a list of commands."""
    switch, listed = flag(), words("commands")

    def parse(value: Any) -> bool | tuple[str, ...]:
        if isinstance(value, bool) or (isinstance(value, str) and value.lower() in _TRUE | _FALSE):
            found: bool = switch.parse(value)
            return found
        names: tuple[str, ...] = listed.parse(value)
        commands_of(names)
        if isinstance(value, str) and not names:
            raise ValueError
        return names

    return Value(parse, f"true or false, or a list of commands ({', '.join(COMMANDS)})")


def origins() -> Value:
    """Return a field for the allowed origins of browsers; ``none`` allows none."""
    listed = words("origins")

    def parse(value: Any) -> tuple[str, ...]:
        found: tuple[str, ...] = listed.parse(value)
        Origins(found)
        return found

    form = "a list of origins such as https://*.example.com, or none alone for no page at all"
    return Value(parse, form, optional=True, off=_OFF - {NONE})


def networks() -> Value:
    """Return a field for addresses or networks, IPv4 or IPv6."""
    return words(
        "addresses or networks such as 10.0.0.0/8",
        lambda word: ipaddress.ip_network(word, strict=False),
    )


class Tokens(fields.Field[Any]):
    """A table of secret tokens, each with its owner.

    The keys of the table are the secrets: a message names an entry by its number.
    """

    FORM = "a table of token = {user_id, roles, tags, attributes}"
    KEYS: Collection[str] = ("user_id", "device_id", "roles", "tags", "attributes")

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **kwargs: Any
    ) -> dict[str, ConnMeta]:
        table = self._table(value)
        owners: dict[str, ConnMeta] = {}
        mistakes: list[str] = []
        for number, (token, about) in enumerate(table.items(), start=1):
            try:
                owners[str(token)] = self._owner(about)
            except (TypeError, ValueError):
                mistakes.append(f"expected {self.FORM}; entry {number} is not of that form")
        if mistakes:
            raise marshmallow.ValidationError(mistakes)
        return owners

    def _table(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, Mapping):
            raise marshmallow.ValidationError(
                f"expected {self.FORM}, in a variable as a JSON object; the value is not shown"
            )
        return value

    def _owner(self, about: Any) -> ConnMeta:
        if isinstance(about, ConnMeta):
            return about
        if not isinstance(about, Mapping) or not set(about) <= set(self.KEYS):
            raise ValueError
        return ConnMeta(**about)
