"""May this message go to its handler? The access controller and the validator say.

Both may be plain or ``async``. Most are plain, and most messages should not cost a
coroutine for a question that is answered already: what is returned is awaited only if
there is something to wait for.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Final

from eyewall.application.connections import Connection
from eyewall.application.middleware import method
from eyewall.application.ports import AccessController, Validator
from eyewall.domain.envelope import ROOM, Envelope
from eyewall.domain.errors import Forbidden

PUBLISH: Final = "system:publish"


class Admission:
    """Asks the access controller, then the validator, as far as there are any.

    A message that is not let through raises ``Forbidden``, or what the validator raised.
    What a client publishes into a room is looked at as its members will get it: topic
    ``room:<room>``, and its own event and data.
    """

    def __init__(self, access: AccessController | None, validator: Validator | None) -> None:
        self._can_publish = None if access is None else method(access, "can_publish")
        self._validate = None if validator is None else method(validator, "validate")

    def ask(self, conn: Connection, message: Envelope) -> Awaitable[None] | None:
        """Decide, or return what has to be awaited for the decision."""
        if self._can_publish is not None:
            topic, event = message.topic, message.event
            if topic == PUBLISH:
                topic, event = published(message)
            allowed = self._can_publish(conn.meta, topic, event)
            if allowed is not True and inspect.isawaitable(allowed):
                return self._ask_on(allowed, topic, message)
            if not allowed:
                raise Forbidden(f"you may not send to {topic}")
        return self._check(message)

    async def _ask_on(self, allowed: Awaitable[bool], topic: str, message: Envelope) -> None:
        if not await allowed:
            raise Forbidden(f"you may not send to {topic}")
        if (waits := self._check(message)) is not None:
            await waits

    def _check(self, message: Envelope) -> Awaitable[None] | None:
        if self._validate is None:
            return None
        topic, event, data = message.topic, message.event, message.data
        if topic == PUBLISH:
            topic, event = published(message)
            if topic == PUBLISH:
                return None  # into no room: the command refuses it
            data = data.get("data")
        result = self._validate(topic, event, data)
        return result if inspect.isawaitable(result) else None


def published(message: Envelope) -> tuple[str, str]:
    """The topic and event that ``system:publish`` means to the access controller."""
    data = message.data
    room, event = (data.get("room"), data.get("event")) if isinstance(data, dict) else (None, None)
    topic = f"{ROOM}{room}" if isinstance(room, str) else PUBLISH
    return topic, event if isinstance(event, str) and event else "message"
