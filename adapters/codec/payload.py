"""Converts payloads into the types that handlers declare.

A dataclass, a msgspec struct and any other type that msgspec knows are converted by
msgspec; a marshmallow schema (class or instance) loads the decoded payload.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import marshmallow
import msgspec

from eyewall.domain.errors import ValidationError

_AT = re.compile(r"^(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)


def load_as(into: Any, data: bytes, loads: Callable[[bytes], Any]) -> Any:
    """Return ``data``, decoded by ``loads``, as the type ``into``.

    Raises ``ValidationError`` with messages by field, or ``InvalidEnvelope`` if ``data`` can't
    be decoded.
    """
    value = loads(data)
    schema = _schema(into)
    if schema is not None:
        try:
            return schema.load(value)
        except marshmallow.ValidationError as error:
            messages = error.messages
            fields = messages if isinstance(messages, dict) else {"_schema": messages}
            raise ValidationError(fields) from None
    try:
        return msgspec.convert(value, into, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValidationError(_field(str(error))) from None


def _schema(into: Any) -> marshmallow.Schema | None:
    if isinstance(into, marshmallow.Schema):
        return into
    if isinstance(into, type) and issubclass(into, marshmallow.Schema):
        return into()
    return None


def _field(text: str) -> dict[str, list[str]]:
    """Turn msgspec's "... - at `$.to.name`" into ``{"to.name": [...]}``."""
    found = _AT.match(text)
    assert found is not None
    path = (found["path"] or "").lstrip(".")
    missing = re.search(r"missing required field `(.+?)`", found["text"])
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
    return {path or "_schema": [found["text"]]}
