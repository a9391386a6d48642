"""May this message go to its handler? The access controller and the validator say.

Both may be plain or ``async``. Most are plain, and most messages should not cost a
coroutine for a question that is answered already: what is returned is awaited only if
there is something to wait for.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any, Final

from eyewall.application.asked import values_of
from eyewall.application.connections import Connection
from eyewall.application.doors import CHANGING, TRIES
from eyewall.application.ports import AccessController, Validator, method
from eyewall.domain.envelope import ROOM, Envelope
from eyewall.domain.errors import Forbidden, ValidationError
from eyewall.domain.identity import ConnMeta

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
        if self._can_publish is None:
            return self._check(message)
        topic, event = message.topic, message.event
        if topic == PUBLISH:
            topic, event = published(message)
        meta = conn.meta
        allowed = self._can_publish(meta, topic, event)
        if allowed is not True and inspect.isawaitable(allowed):
            return self._ask_on(conn, message, meta, allowed)
        if not allowed:
            raise Forbidden(f"you may not send to {topic}")
        if self._validate is None or (waits := self._check(message)) is None:
            return None
        return self._wait_on(conn, message, meta, waits)

    def again(self, conn: Connection, message: Envelope, meta: ConnMeta) -> Awaitable[None] | None:
        """What has to be awaited for the word on who the connection is by now, where the
        message was let through for ``meta``; None if that is the same owner."""
        if self._can_publish is None or conn.meta.is_same_owner(meta):
            return None
        return self._ask_on(conn, message, meta, allowed=True, checked=True)

    async def _wait_on(
        self, conn: Connection, message: Envelope, meta: ConnMeta, waits: Awaitable[None]
    ) -> None:
        """Wait for the validator, which has begun. The controller has said yes to ``meta``."""
        await waits
        if not conn.meta.is_same_owner(meta):
            await self._ask_on(conn, message, meta, allowed=True, checked=True)

    async def _ask_on(
        self,
        conn: Connection,
        message: Envelope,
        meta: ConnMeta,
        allowed: Awaitable[bool] | bool,
        *,
        checked: bool = False,
    ) -> None:
        """Go on from what the controller said, or is about to say, to ``meta``. Whoever the
        connection is when nothing is waited for any more has to be let through."""
        assert self._can_publish is not None
        topic, event = message.topic, message.event
        if topic == PUBLISH:
            topic, event = published(message)
        for tried in range(TRIES):
            if tried:
                meta = conn.meta
                allowed = self._can_publish(meta, topic, event)
            said = await allowed if inspect.isawaitable(allowed) else allowed
            if conn.meta.is_same_owner(meta):
                if not said:
                    raise Forbidden(f"you may not send to {topic}")
                waits = None if checked else self._check(message)
                checked = True
                if waits is None:
                    return
                await waits
                if conn.meta.is_same_owner(meta):
                    return
        raise Forbidden(CHANGING)

    def _check(self, message: Envelope) -> Awaitable[None] | None:
        if self._validate is None:
            return None
        topic, event, data = message.topic, message.event, message.data
        if topic == PUBLISH:
            topic, event = _meant(data)
            if topic == PUBLISH:
                return None  # into no room: the command refuses it
            data = data.get("data")
        result = self._validate(topic, event, data)
        return result if inspect.isawaitable(result) else None


def published(message: Envelope) -> tuple[str, str]:
    """The topic and event that ``system:publish`` means to the access controller, who needs
    nothing else of it decoded; raises ``InvalidEnvelope``."""
    if message.raw is None:
        return _meant(message.data)
    try:
        return _meant(values_of(message.raw.fields(), "room", "event"))
    except ValidationError:
        return _meant(None)


def _meant(data: Any) -> tuple[str, str]:
    room, event = (data.get("room"), data.get("event")) if isinstance(data, dict) else (None, None)
    topic = f"{ROOM}{room}" if isinstance(room, str) else PUBLISH
    return topic, event if isinstance(event, str) and event else "message"
