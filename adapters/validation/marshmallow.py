"""Validates payloads by marshmallow schemas, chosen by topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow

from eyewall.domain.errors import ValidationError
from eyewall.domain.routing import RouteTable

WHOLE = "_schema"
"""The field of marshmallow's messages about the payload as a whole."""


class MarshmallowValidator:
    """Implements ``Validator`` with a schema, or a schema's class, for each pattern.

    Patterns work as in routing: an exact topic wins over a wildcard, a longer prefix over a
    shorter one. A topic without a pattern is not validated.

    >>> from marshmallow import Schema, fields
    >>> validator = MarshmallowValidator({"chat:*": Schema.from_dict({"text": fields.Str()})})
    >>> validator.validate("chat:lobby", "message", {"text": "hello"})

    Raises ``ValueError`` for a bad pattern, or for what is no schema.
    """

    def __init__(
        self, schemas: Mapping[str, marshmallow.Schema | type[marshmallow.Schema]]
    ) -> None:
        self._schemas: RouteTable[marshmallow.Schema] = RouteTable()
        for pattern, schema in schemas.items():
            self._schemas.add(pattern, _instance(pattern, schema))

    def validate(self, topic: str, event: str, data: Any) -> None:
        """Raise ``ValidationError`` if ``data`` does not fit the schema of ``topic``.

        Its ``fields`` are marshmallow's messages: texts by the name of the field, nested like
        the payload.
        """
        schema = self._schemas.find(topic, None)
        if schema is None:
            return
        try:
            schema.load(data)
        except marshmallow.ValidationError as error:
            raise ValidationError(_as_json(_by_field(error))) from None


def _instance(pattern: str, schema: object) -> marshmallow.Schema:
    if isinstance(schema, type) and issubclass(schema, marshmallow.Schema):
        return schema()
    if not isinstance(schema, marshmallow.Schema):
        raise ValueError(f"{pattern!r} needs a marshmallow schema, not {schema!r:.80}")
    return schema


def _by_field(error: marshmallow.ValidationError) -> Mapping[Any, Any]:
    messages = error.messages
    return messages if isinstance(messages, Mapping) else {WHOLE: messages}


def _as_json(messages: Any) -> Any:
    """Return the messages with strings for keys: marshmallow numbers the items of a list."""
    if isinstance(messages, Mapping):
        return {str(key): _as_json(found) for key, found in messages.items()}
    return messages
