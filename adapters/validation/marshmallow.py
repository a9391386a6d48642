"""Payloads checked against marshmallow schemas, by topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow

from eyewall.domain.errors import ValidationError
from eyewall.domain.routing import RouteTable

WHOLE = "_schema"
"""The field under which marshmallow tells what is wrong with the payload as a whole."""


class MarshmallowValidator:
    """Implements ``Validator`` with a schema, or a schema's class, for each pattern.

    Patterns work as in routing: an exact topic beats a wildcard, a longer prefix a
    shorter one. A topic that no pattern fits passes.

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

        Its ``fields`` are marshmallow's messages: texts by the field's name, nested as
        the payload is.
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
    """Return the messages with texts for keys: marshmallow counts a list's items."""
    if isinstance(messages, Mapping):
        return {str(key): _as_json(found) for key, found in messages.items()}
    return messages
