"""The errors, in three families that say whose fault it is.

* ``Refused``: a rule forbids the request of the caller or client. The answer has a stable
  ``code`` (protocol.md, "Replies") and says whether a retry makes sense.
* ``Unavailable``: something outside (a broker, a store) could not be reached.
* ``Misuse``: the code broke a contract; logged as a bug, never sent to a client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import Any, ClassVar

from eyewall.domain.ack_result import AckResult
from eyewall.domain.identity import is_printable


class EyewallError(Exception):
    """The root of everything that eyewall raises on purpose.

    ``code`` is the class name in snake case, as the wire protocol has it.
    """

    code: ClassVar[str] = "eyewall_error"
    text: str = ""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        # Applications give other errors, numbers and None too.
        given: object = text
        self.text = given if isinstance(given, str) else as_text(given)

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __str__(self) -> str:
        return self.text or _code(self).replace("_", " ")

    def details(self) -> dict[str, Any]:
        """Return the fields that the answer has beside ``code`` and ``error``.

        A value that JSON can't hold is sent as text; the protocol's own fields
        (``RESERVED``) are left out.
        """
        return {}


class Refused(EyewallError):
    """A rule forbids the request of the caller or client."""

    retryable: ClassVar[bool] = False


class Unavailable(EyewallError):
    """Something outside (a broker, a store) could not be reached; try again."""

    retryable: ClassVar[bool] = True


class Misuse(EyewallError):
    """The code broke a contract. Logged as a bug, never sent to a client."""

    retryable: ClassVar[bool] = False


class UnsafeConfiguration(Misuse):
    """With this configuration the server would silently lose or split the data it has to keep.

    Raised at the start, unless ``allow_unsafe`` names the problem.
    """


class HandlerNotFound(Refused):
    """No route matches the topic (and version) of the message."""


class Unauthorized(Refused):
    """The connection has no user where one is needed, or its credentials are not valid."""


class Forbidden(Refused):
    """The access controller, or the sender's role, does not allow it."""


class InvalidEnvelope(Refused):
    """The message can be decoded but breaks the rules of an envelope.

    ``ref`` and ``topic`` are the message's id and topic, where these could be read.
    """

    def __init__(self, text: str = "", *, ref: str | None = None, topic: str | None = None) -> None:
        super().__init__(text)
        self.ref = ref
        self.topic = topic


class InvalidJson(Refused):
    """The frame is not JSON."""


class UnsupportedData(Refused):
    """The codec does not accept this kind of frame (text, binary)."""


MAX_COMPLAINTS = 8
"""Fields that the text of a ``ValidationError`` names; ``fields`` has them all."""

MAX_COMPLAINT = 100
"""Longest text about one field in it, in characters."""


class ValidationError(Refused):
    """The payload failed its schema.

    ``fields`` maps a field's name to the texts of what is wrong with it; nested like the
    payload. The default text names the first eight: ``the payload does not fit its schema:
    age: Not a valid integer.``
    """

    code = "validation"

    def __init__(self, fields: Mapping[str, Any], text: str = "") -> None:
        given: object = fields
        # A list of messages, or one, is about the payload as a whole.
        self.fields = dict(given) if isinstance(given, Mapping) else {"_schema": given}
        super().__init__(text or _complaint(self.fields))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fields, self.text)

    def details(self) -> dict[str, Any]:
        """Return ``fields``."""
        return {"fields": self.fields}


def _complaint(fields: Mapping[str, Any]) -> str:
    """Return the errors of the first fields in one bounded line. Never raises."""
    text = "the payload does not fit its schema"
    try:
        named = list(islice(_complaints(fields, "", 0), MAX_COMPLAINTS + 1))
    except Exception:  # noqa: BLE001  (a mapping of the application's own)
        return text
    if not named:
        return text
    rest = "; ..." if len(named) > MAX_COMPLAINTS else ""
    return f"{text}: {'; '.join(named[:MAX_COMPLAINTS])}{rest}"


def _complaints(found: object, path: str, depth: int) -> Iterator[str]:
    if isinstance(found, Mapping) and depth < MAX_COMPLAINTS:
        for key, inner in found.items():
            name = "" if key == "_schema" else _short(key)
            at = f"{path}.{name}" if path and name else path or name
            yield from _complaints(inner, at, depth + 1)
        return
    if isinstance(found, list | tuple):
        found = found[0] if found else ""
    why = "" if found is None else _short(found)
    if path or why:
        yield _short(f"{path}: {why}" if path and why else path or why)


def _short(value: object) -> str:
    """Return ``value`` as a short printable text: a field's name may come from the client."""
    text = as_text(value)
    text = text if len(text) <= MAX_COMPLAINT else f"{text[: MAX_COMPLAINT - 1]}…"
    return text if is_printable(text) else repr(text)[1:-1]


class RateLimited(Refused):
    """The limiter refused the message; try again after ``retry_after`` seconds."""

    retryable = True

    def __init__(self, retry_after: float, text: str = "") -> None:
        super().__init__(text)
        self.retry_after = retry_after

    def details(self) -> dict[str, Any]:
        """Return ``retry_after``, in seconds."""
        return {"retry_after": wait_of(self.retry_after)}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.retry_after, self.text)


class Overloaded(Refused):
    """Too much work is queued; try again after ``retry_after`` seconds."""

    retryable = True

    def __init__(self, text: str = "", retry_after: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after

    def details(self) -> dict[str, Any]:
        """Return ``retry_after``, in seconds."""
        return {"retry_after": wait_of(self.retry_after)}


class ShuttingDown(Overloaded):
    """The node is draining: try again after the reconnect."""

    code = "overloaded"


class RoomNotFound(Refused):
    """There is no room of this name."""


class RoomExists(Refused):
    """A room of this name was created with other options."""


class RoomFull(Refused):
    """The room's capacity is reached; a retry works once a member has left."""

    retryable = True


class JoinForbidden(Refused):
    """The room's policy, or a ban, does not let this user in."""


class NotAMember(Refused):
    """The connection has to be a member of the room for this command."""


class ConnectionClosed(Refused):
    """The connection has ended, or there is none of this id."""


class QueueFull(Refused):
    """The connection's outbound queue is full and the policy dropped the message."""

    retryable = True


class SlowConsumer(Refused):
    """The connection was closed because it does not read fast enough."""


class UserOffline(Refused):
    """The user has no connection in the cluster."""

    retryable = True


class AckTimeout(Refused):
    """The receiver did not acknowledge in time.

    ``result`` names the connections that did, and those that did not; it is None unless
    ``emit_with_ack`` raised the error.
    """

    retryable = True

    def __init__(self, text: str = "", *, result: AckResult | None = None) -> None:
        super().__init__(text)
        self.result = result


class Nacked(Refused):
    """The receiver refused the message; the text is the receiver's."""


LONGEST_WAIT = 1e9
"""Seconds beyond which a wait is meaningless: 30 years."""

INTERNAL = "internal"
"""The code of an unexpected exception: its text never leaves the server."""

MAX_CODE = 256
"""Longest code, in characters: as for the other names in a message."""


def code_of(error: BaseException) -> str:
    """Return the wire protocol's code for any exception. Never raises."""
    if isinstance(error, Unavailable):
        return "unavailable"
    return _code(error) if isinstance(error, Refused) else INTERNAL


def _code(error: EyewallError) -> str:
    """Return the code of ``error``; that of its base class, if the code of an application's
    class is not valid (a number, say)."""
    try:
        found: list[Any] = [error.code]
    except BaseException:  # noqa: BLE001  (a property of the application's)
        found = []
    found += [kind.__dict__.get("code") for kind in type(error).__mro__]
    return next(str.__str__(code) for code in found if _is_code(code))


def _is_code(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CODE:
        return False
    return as_text(value) == value


def as_text(value: object) -> str:
    """Return ``value`` as a text that can be sent; empty if it has none. Never raises.

    Half a surrogate pair, which no message can hold, becomes a question mark.
    """
    try:
        return str.__str__(str(value)).encode(errors="replace").decode()
    except BaseException:  # noqa: BLE001  (whatever a __str__ of the application's raises)
        return ""


def from_code(code: str, text: str, details: Mapping[str, Any]) -> EyewallError:
    """Return the error that ``code`` names: the inverse of ``code_of``.

    Never raises, since the other side may send anything. An unknown code becomes a plain
    ``Refused`` with the text.
    """
    match code:
        case "unavailable":
            return Unavailable(text)
        case "validation":
            fields = details.get("fields")
            return ValidationError(fields if isinstance(fields, Mapping) else {}, text)
        case "rate_limited":
            return RateLimited(_wait(details, 0.0), text)
        case "overloaded":
            return Overloaded(text, _wait(details, 1.0))
    return _BY_CODE.get(code, Refused)(text)


def _wait(details: Mapping[str, Any], default: float) -> float:
    value = details.get("retry_after")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < LONGEST_WAIT else default  # type: ignore[arg-type, operator]


def wait_of(value: object, default: float = 1.0) -> float:
    """Return ``value`` as seconds to wait, at least 0; ``default`` for a value without meaning
    (NaN, infinity, 30 years). Never raises."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value < LONGEST_WAIT:
        return default
    return max(0.0, float(value)) if value > -LONGEST_WAIT else 0.0


_BY_CODE: dict[str, type[Refused]] = {
    error.code: error
    for error in (
        HandlerNotFound,
        Unauthorized,
        Forbidden,
        InvalidEnvelope,
        InvalidJson,
        UnsupportedData,
        RoomNotFound,
        RoomExists,
        RoomFull,
        JoinForbidden,
        NotAMember,
        ConnectionClosed,
        QueueFull,
        SlowConsumer,
        UserOffline,
        AckTimeout,
        Nacked,
    )
}
"""The errors whose constructor takes the text alone, by code."""
