"""The client as a program sees it."""

from __future__ import annotations

import ssl as tls
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, TypeVar, overload

from eyewall.adapters.observe.logs import make_logger
from eyewall.application.ports.logging import guarded
from eyewall.application.ports.plugins import Logger
from eyewall.client import inbox, outbox, wire
from eyewall.client.address import Address, redacted_url, valid_headers, valid_url
from eyewall.client.backoff import FIRST_DELAY, MAX_DELAY, Backoff
from eyewall.client.engine import Engine
from eyewall.client.receiver import Counts, Incoming
from eyewall.client.requests import OnAnswer
from eyewall.client.supervisor import State
from eyewall.client.tokens import TokenSource
from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import EyewallError, Misuse
from eyewall.domain.history import HistoryPage, since_from, wire_position

C = TypeVar("C", bound=Callable[..., Any])

MAX_MESSAGE_SIZE: Final = 16 * 1024 * 1024
"""Bytes of one message from the server: twice what its queue for a connection holds."""

TIMEOUT: Final = 5.0
"""Seconds for an answer; also the server's own time for an ack."""


TYPING_TTL: Final = 5.0
"""Seconds after which the server lets typing end that was sent without a ``ttl``
(docs/protocol.md, ``system:typing``)."""


@dataclass(frozen=True, slots=True)
class _SentTyping:
    room: str
    ttl: float | None
    link: object
    is_in: bool
    at: float


class TypingThrottle:
    """Remembers the last ``typing(room, True)``, so that not every key stroke is a message.

    It holds for half of its ttl: the other members get the next one before the first ends. It
    holds only on the connection that it was sent on, since a cut ends typing, and only while
    the client's membership of the room is what it was then.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: _SentTyping | None = None

    def holds(self, room: str, ttl: float | None, link: object, *, is_in: bool) -> bool:
        """Return whether the same was sent less than half of its ttl ago."""
        last = self._last
        if last is None or last.link is not link or last.is_in is not is_in:
            return False
        if (last.room, last.ttl) != (room, ttl):
            return False
        return self._now() - last.at < (TYPING_TTL if ttl is None else ttl) / 2

    def sent(self, room: str, ttl: float | None, link: object, *, is_in: bool) -> object:
        """Note that it is sent now; returns the argument of ``take_back``."""
        self._last = _SentTyping(room, ttl, link, is_in, self._now())
        return self._last

    def take_back(self, sent: object) -> None:
        """Forget a message that was refused or lost, unless another was sent since."""
        if self._last is sent:
            self._last = None

    def forget(self) -> None:
        """Send the next one in any case: the typing has ended, or will."""
        self._last = None


class Client:
    """A connection to a hub that comes back by itself.

    ``token`` is a text, or a function (plain or async) that returns one, or a mapping
    ``{"token": ..., "expires_in": seconds}`` (or ``expires_at``): with its end known it is
    renewed in time. ``headers`` go with the handshake, ``ssl`` is for ``wss`` addresses
    with certificates of one's own. Redirects are not followed. One that is not let in (HTTP
    401 or 403, or a close with 4504) stays away until it is given another token
    (``set_token``); a function is asked once more by itself.

    ``outbox`` messages wait while there is no connection,
    ``queue`` messages for callbacks, and as many for the iteration. Times are seconds:
    ``connect_timeout`` for everything up to the welcome, ``heartbeat`` between two pings,
    the first wait before a reconnect (``first_delay`` at most) and the longest.

    Raises ``ValueError`` for a wrong option. Entering it waits until the connection is
    open, and raises ``Unauthorized``, ``Forbidden`` or ``Unavailable`` if it is refused; a
    client is entered once.

    >>> async with Client("ws://127.0.0.1:8080/ws", token="s3cret") as client:
    ...     answer = await client.request("math:add", {"a": 1, "b": 2})
    """

    def __init__(
        self,
        url: str,
        *,
        token: TokenSource | None = None,
        headers: Mapping[str, str] | None = None,
        ssl: tls.SSLContext | None = None,
        outbox: int = outbox.SIZE,
        queue: int = inbox.SIZE,
        max_message_size: int = MAX_MESSAGE_SIZE,
        connect_timeout: Seconds = 10.0,
        heartbeat: Seconds = 20.0,
        first_delay: Seconds = FIRST_DELAY,
        max_delay: Seconds = MAX_DELAY,
        logger: Logger | None = None,
    ) -> None:
        url = valid_url(url)
        if ssl is not None and url.lower().startswith("ws://"):
            raise ValueError("ssl is for addresses that begin with wss://")
        self._shown = redacted_url(url)
        self._engine = Engine(
            address=Address(
                url=url,
                headers=valid_headers(headers or {}),
                ssl=ssl,
                timeout=seconds(connect_timeout, "connect_timeout", positive=True),
                heartbeat=seconds(heartbeat, "heartbeat", positive=True),
                max_message_size=count(max_message_size, "max_message_size"),
            ),
            token=token,
            backoff=Backoff(seconds(first_delay, "first_delay"), seconds(max_delay, "max_delay")),
            outbox=count(outbox, "outbox"),
            queue=count(queue, "queue"),
            logger=guarded(make_logger(level="warning") if logger is None else logger),
        )
        self._handed: Incoming | None = None
        self._iterating = False
        self._typing = TypingThrottle()

    def __repr__(self) -> str:
        return f"Client({self._shown!r}, {self.state})"

    # --- beginning and end

    async def __aenter__(self) -> Self:
        await self._engine.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def ready(self) -> None:
        """Return when the connection is open, now or after the cut that there is.

        Raises ``last_error`` when the client stays away: ``Unauthorized`` or ``Forbidden`` if
        it was not let in, ``ConnectionClosed`` after a close that is for good. Raises
        ``Misuse`` if it was not entered.
        """
        await self._engine.ready()

    def set_token(self, token: TokenSource | None) -> None:
        """Show this token from now on, or what this function gives.

        A client that was not let in comes back with it: await ``ready()`` to know whether it
        has; rooms are joined again. While the connection is open it is shown there too, so
        that a token of the same user is renewed without a cut; one of another user, or None,
        counts from the next connection on. Raises ``ValueError`` for what is no token,
        ``ConnectionClosed`` when the application has closed the client.

        >>> async with Client("ws://127.0.0.1:8080/ws", token="old") as client:
        ...     client.set_token("new")
        ...     await client.ready()
        """
        self._engine.set_token(token)

    async def close(self) -> None:
        """Close for good: what waits to go out is written first, the callback that runs may
        finish, both within five seconds; requests without an answer get ``ConnectionClosed``.

        May be called twice, and by a callback.
        """
        await self._engine.close()

    # --- what it is like

    @property
    def state(self) -> State:
        """Connecting, open, waiting (to come back), or closed."""
        return self._engine.state

    @property
    def last_error(self) -> EyewallError | None:
        """Why the client waits, or is closed; None while it is open, and before.

        ``Unauthorized`` or ``Forbidden`` means: not let in. ``Unavailable`` means that no
        server could be reached, or that it has no time; ``ConnectionClosed`` that the
        connection has ended, and its text how.
        """
        session = self._engine.session
        return None if session is None else session.error

    @property
    def retry_in(self) -> float | None:
        """Seconds until it comes back; None if it does not wait for that."""
        session = self._engine.session
        if session is None or session.state is not State.WAITING:
            return None
        return max(0.0, session.retry_at - time.monotonic())

    @property
    def welcome(self) -> Mapping[str, Any]:
        """What the server said first on the connection that is open, or was last."""
        session = self._engine.session
        link = None if session is None else session.link
        return MappingProxyType({} if link is None else dict(link.welcome))

    @property
    def conn_id(self) -> str | None:
        """The connection's id, another one after each reconnect; None before the first."""
        found = self.welcome.get("conn_id")
        return found if isinstance(found, str) else None

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that it is in, as far as it knows: those that it joined, and those with
        history that it has heard from."""
        return self._engine.rooms.names()

    @property
    def counts(self) -> Counts:
        """What has been dropped, repeated, or come ahead of its turn."""
        return self._engine.receiver.counts

    # --- callbacks

    @overload
    def on(self, pattern: str) -> Callable[[C], C]: ...
    @overload
    def on(self, pattern: str, callback: C) -> C: ...
    def on(self, pattern: str, callback: C | None = None) -> C | Callable[[C], C]:
        """Have ``callback(message)`` called for a topic, or for all below a prefix
        (``chat:*``). Also a decorator.

        An exact topic beats a prefix, a longer prefix a shorter one; each has one callback,
        plain or async. They are called one after another. When the server asked for an ack,
        it gets it afterwards, with what the callback returned as ``result``, or a nack with
        the text of what it raised. Raises ``ValueError`` for a bad pattern, or one that has
        a callback.
        """
        if callback is None:
            return lambda given: self.on(pattern, given)
        self._engine.receiver.callbacks.add(pattern, callback, system=True)
        return callback

    def on_state(self, callback: C) -> C:
        """Have ``callback(state)`` called at each change of ``state``. Also a decorator."""
        self._engine.on_state.append(callback)
        return callback

    def on_lost(self, callback: C) -> C:
        """Have ``callback(room, code)`` called when messages of a room are lost for good, so
        that the application should load it anew. With a code (``join_forbidden``) the
        client is not in the room any more; it is None otherwise. Also a decorator.
        """
        self._engine.on_lost.append(callback)
        return callback

    # --- messages

    async def send(self, topic: str, data: Any = None, event: str = "message") -> None:
        """Send a message that asks for no ack: at most once.

        While there is no connection it waits in the outbox. Raises ``Overloaded`` when that
        is full, ``ConnectionClosed`` when the client does not come back, ``InvalidEnvelope``
        when the server would not take one so large, ``ValueError`` for what can't be sent.
        """
        await self._engine.send(topic, data, event)

    async def request(
        self, topic: str, data: Any = None, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Send a request and return its ack's data: what the handler returned, and
        ``message_id`` and ``status``.

        After a cut it is sent again, under its id, so that the server handles it once.
        Raises the error of the code that it is refused with, with its fields (as
        ``ValidationError.fields``), ``AckTimeout`` when nothing came in ``timeout`` seconds,
        and what ``send`` raises. Of more than 256 at a time the others wait for their turn.
        """
        within = seconds(timeout, "timeout", positive=True)
        return await self._engine.request(topic, data, within)

    # --- rooms

    async def join(
        self, room: str, since: Any = None, *, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Join a room; the answer has ``role``, ``members``, and where the room keeps history
        ``epoch`` and ``offset``. After a cut it is joined again.

        With ``since`` what the room keeps from there comes to the callbacks first, in order,
        and then what is live: ``"start"``, a number of newest messages, or whatever has an
        epoch and an offset, as in ``history``. What was handled before comes again.
        ``recovered`` in the answer says whether it was all; what is kept comes in any case.
        After a cut the client goes on from where it is. ``timeout`` is then for an answer or
        the next message. Raises ``ValueError`` for a wrong ``since``.
        """
        if since is not None:
            begins, within = since_from(since), seconds(timeout, "timeout", positive=True)
            self._engine.rooms.cancel_leave(room)
            with self._engine.rooms.busy(room):
                return await self._engine.join(room, begins, within)

        def joined(answer: dict[str, Any]) -> None:
            self._engine.rooms.joined(room, answer.get("epoch"), answer.get("offset"))

        self._engine.rooms.cancel_leave(room)
        return await self._command("join", {"room": room}, timeout, joined)

    async def leave(self, room: str, *, timeout: Seconds = TIMEOUT) -> dict[str, Any]:
        """Leave a room: whether or not the server answers, unless it refuses."""
        self._typing.forget()
        return await self._engine.leave(room, seconds(timeout, "timeout", positive=True))

    async def publish(
        self, room: str, data: Any = None, event: str = "message", *, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Send to all members of a room, oneself too; the answer has ``delivered``, and
        where the room keeps history the message's ``epoch`` and ``offset``."""
        return await self._command("publish", {"room": room, "event": event, "data": data}, timeout)

    async def members(self, room: str, *, timeout: Seconds = TIMEOUT) -> list[dict[str, Any]]:
        """All members of a room that one is in: ``user_id``, ``role``, ``connections``.

        ``timeout`` is for each page of a thousand.
        """
        found: list[dict[str, Any]] = []
        fields: dict[str, Any] = {"room": room}
        while True:
            page = await self._command("members", fields, timeout)
            found += page.get("members", ())
            if "cursor" not in page:
                return found
            fields["cursor"] = page["cursor"]

    async def presence(
        self,
        users: Iterable[str] = (),
        *,
        room: str | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> dict[str, dict[str, Any]]:
        """Who of these users, or of the members of a room, is there: ``online``,
        ``connections`` and ``last_seen`` by user."""
        asked = {"users": [users] if isinstance(users, str) else list(users)}
        fields = asked if room is None else {"room": room}
        found: dict[str, dict[str, Any]] = (await self._command("presence", fields, timeout)).get(
            "users", {}
        )
        return found

    async def typing(
        self,
        room: str,
        typing: bool = True,
        *,
        ttl: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> None:
        """Tell the other members that one types, for ``ttl`` seconds (5 by default), or no longer
        does.

        May be called at every key stroke: what was said less than half of its ``ttl`` ago is not
        sent again. ``False`` is always sent, and so is what comes after it, after ``leave``,
        after the same in another room, on a new connection, and with another ``ttl``.
        """
        fields: dict[str, Any] = {"room": room, "typing": typing}
        span = None if ttl is None else seconds(ttl, "ttl", positive=True)
        if span is not None:
            fields["ttl"] = span
        within = seconds(timeout, "timeout", positive=True)
        if typing is not True:
            self._typing.forget()
            await self._command("typing", fields, within)
            return
        session = self._engine.session
        link = None if session is None else session.link
        is_in = room in self._engine.rooms
        if self._typing.holds(room, span, link, is_in=is_in):
            return
        sent = self._typing.sent(room, span, link, is_in=is_in)
        try:
            await self._command("typing", fields, within)
        except BaseException:
            self._typing.take_back(sent)
            raise

    async def history(
        self,
        room: str,
        since: Any = None,
        limit: int = 100,
        *,
        timeout: Seconds = TIMEOUT,
    ) -> HistoryPage:
        """The newest ``limit`` messages of a room, oldest first, or the first after ``since``:
        whatever has an epoch and an offset, as a message's ``stream``, a page, or a mapping.
        Raises ``ValueError`` for what has none.
        """
        fields: dict[str, Any] = {"room": room, "limit": count(limit, "limit")}
        if since is not None:
            fields["since"] = wire_position(since)
        return wire.page(await self._command("history", fields, timeout))

    async def _command(
        self,
        name: str,
        fields: Mapping[str, Any],
        timeout: Seconds,
        on_answer: OnAnswer | None = None,
    ) -> dict[str, Any]:
        within = seconds(timeout, "timeout", positive=True)
        room = fields.get("room")
        with self._engine.rooms.busy(room if isinstance(room, str) else None):
            return await self._engine.request(f"system:{name}", fields, within, on_answer)

    # --- iteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope[Any]:
        """The next message that no callback takes; the one before counts as handled then,
        and is acked if the server asked for that.

        It ends when the client is closed; after a refusal and ``set_token`` it may be begun
        again. One task iterates at a time. Without one, as many
        messages wait as ``queue`` says; of those that come then, the ones with a place in a
        history are asked for again when there is place, the others are dropped and counted.
        """
        if self._iterating:
            raise Misuse("another task iterates over this client")
        handed, self._handed = self._handed, None
        if handed is not None:
            handed.settle(wire.accepted(handed.message))
        self._iterating = True
        try:
            found = await self._engine.receiver.iteration_queue.get()
        finally:
            self._iterating = False
        if found is None:
            raise StopAsyncIteration
        self._handed = found
        return found.message
