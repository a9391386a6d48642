"""The public client."""

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
    """A connection to a hub that reconnects by itself.

    ``token`` is a text, or a function (plain or async) that returns one, or a mapping
    ``{"token": ..., "expires_in": seconds}`` (or ``expires_at``): a token with a known end is
    renewed in time. ``headers`` are sent with the handshake; ``ssl`` is for ``wss`` addresses
    with certificates of your own. Redirects are not followed. A client that is refused (HTTP
    401 or 403, or a close with 4504) does not reconnect until ``set_token`` is called; a
    function is called once more before that.

    ``outbox`` messages wait while there is no connection, ``queue`` messages for callbacks,
    and as many for the iteration. Times are seconds: ``connect_timeout`` from the connect to
    the welcome, ``heartbeat`` between two pings, ``first_delay`` and ``max_delay`` for the
    first and the longest wait before a reconnect, each an upper bound.

    Raises ``ValueError`` for a wrong option. Entering it waits until the connection is open,
    and raises ``Unauthorized`` or ``Forbidden`` if the server refuses the client,
    ``Unavailable`` if no server answers. A client is entered once.

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

    # --- start and end

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
        """Return when the connection is open; waits for the reconnect after a cut.

        Raises ``last_error`` if the client does not reconnect: ``Unauthorized`` or
        ``Forbidden`` if it was refused, ``ConnectionClosed`` after a final close. Raises
        ``Misuse`` if it was not entered.
        """
        await self._engine.ready()

    def set_token(self, token: TokenSource | None) -> None:
        """Use this token from now on, or the tokens of this function.

        A client that was refused reconnects with it, and joins its rooms again: await
        ``ready()`` to know whether it succeeded. An open connection sends a new token to the
        server, so that a token of the same user is renewed without a cut. A token of another
        user, or None, counts from the next connection on; messages from before that still
        wait then are not sent. Raises ``ValueError`` for a malformed token,
        ``ConnectionClosed`` if the application has closed the client.

        >>> async with Client("ws://127.0.0.1:8080/ws", token="old") as client:
        ...     client.set_token("new")
        ...     await client.ready()
        """
        self._engine.set_token(token)

    async def close(self) -> None:
        """Close for good. Waiting messages are written first, and the running callback may
        finish, both within five seconds. Requests in flight raise ``ConnectionClosed``.

        May be called twice, and from a callback.
        """
        await self._engine.close()

    # --- state

    @property
    def state(self) -> State:
        """Connecting, open, waiting (to come back), or closed."""
        return self._engine.state

    @property
    def last_error(self) -> EyewallError | None:
        """Why the client waits or is closed; None while it is open, and before that.

        ``Unauthorized`` or ``Forbidden``: the server refuses the client. ``Unavailable``: no
        server could be reached, or it is overloaded. ``ConnectionClosed``: the connection has
        ended; the text says how.
        """
        supervisor = self._engine.supervisor
        return None if supervisor is None else supervisor.error

    @property
    def retry_in(self) -> float | None:
        """Seconds until the next attempt to connect; None if the state is not WAITING."""
        supervisor = self._engine.supervisor
        if supervisor is None or supervisor.state is not State.WAITING:
            return None
        return max(0.0, supervisor.retry_at - time.monotonic())

    @property
    def welcome(self) -> Mapping[str, Any]:
        """The data of ``system:welcome`` on the open connection, or the last one."""
        supervisor = self._engine.supervisor
        link = None if supervisor is None else supervisor.link
        return MappingProxyType({} if link is None else dict(link.welcome))

    @property
    def conn_id(self) -> str | None:
        """The connection's id, a new one after each reconnect; None before the first."""
        found = self.welcome.get("conn_id")
        return found if isinstance(found, str) else None

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that the client is in, as far as it knows: those that it joined, and those
        with history that it got messages from."""
        return self._engine.rooms.names()

    @property
    def counts(self) -> Counts:
        """How many received messages were unreadable, dropped, duplicates, or behind a gap."""
        return self._engine.receiver.counts

    # --- callbacks

    @overload
    def on(self, pattern: str) -> Callable[[C], C]: ...
    @overload
    def on(self, pattern: str, callback: C) -> C: ...
    def on(self, pattern: str, callback: C | None = None) -> C | Callable[[C], C]:
        """Call ``callback(message)`` for each message of a topic, or of all topics below a
        prefix (``chat:*``). Also a decorator.

        An exact topic precedes a prefix, and a longer prefix a shorter one; each has one
        callback, plain or async. Callbacks run one after another. If the server asked for an
        ack, it is sent afterwards, with the return value as ``result``, or a nack with the
        text of the exception. Raises ``ValueError`` for a malformed pattern, or one that has
        a callback already.
        """
        if callback is None:
            return lambda given: self.on(pattern, given)
        self._engine.receiver.callbacks.add(pattern, callback, system=True)
        return callback

    def on_state(self, callback: C) -> C:
        """Call ``callback(state)`` at each change of ``state``. Also a decorator."""
        self._engine.on_state.append(callback)
        return callback

    def on_lost(self, callback: C) -> C:
        """Call ``callback(room, code)`` when messages of a room are lost for good, and the
        application should load the room anew. With a code (``join_forbidden``) the client is
        not in the room any more; otherwise it is None. Also a decorator.
        """
        self._engine.on_lost.append(callback)
        return callback

    # --- messages

    async def send(self, topic: str, data: Any = None, event: str = "message") -> None:
        """Send a message without an ack: it is delivered at most once.

        While there is no connection it waits in the outbox. Raises ``Overloaded`` if the
        outbox is full, ``ConnectionClosed`` if the client does not reconnect,
        ``InvalidEnvelope`` if the message is larger than the server takes, ``ValueError`` if
        it can't be encoded.
        """
        await self._engine.send(topic, data, event)

    async def request(
        self, topic: str, data: Any = None, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Send a request and return the data of its ack: the handler's return value, and
        ``message_id`` and ``status``.

        After a cut it is retransmitted under its id, and the server handles it once. Raises
        the error of the refusal's code, with its fields (as ``ValidationError.fields``),
        ``AckTimeout`` if no answer comes within ``timeout`` seconds, and the errors of
        ``send``. 256 requests may be in flight; further ones wait.
        """
        within = seconds(timeout, "timeout", positive=True)
        return await self._engine.request(topic, data, within)

    # --- rooms

    async def join(
        self, room: str, since: Any = None, *, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Join a room; the answer has ``role``, ``members``, and if the room keeps history
        ``epoch`` and ``offset``. After a cut the client joins it again.

        With ``since`` the callbacks first get the kept messages from there, in order, and
        then the live ones: ``"start"``, a number of newest messages, or anything with an
        epoch and an offset, as in ``history``. Messages that were handled before come again.
        ``recovered`` in the answer says whether all of them came; those that are kept come in
        any case. After a cut the client continues from its position. ``timeout`` is then for
        the answer or the next message. Raises ``ValueError`` for a malformed ``since``.
        """
        within = seconds(timeout, "timeout", positive=True)
        rooms = self._engine.rooms
        if since is not None:
            begins = since_from(since)
            rooms.cancel_leave(room)
            with rooms.busy(room):
                return await self._engine.join(room, begins, within)

        def joined(answer: dict[str, Any]) -> None:
            rooms.joined(room, answer.get("epoch"), answer.get("offset"))

        rooms.cancel_leave(room)
        return await self._command("join", {"room": room}, within, joined)

    async def leave(self, room: str, *, timeout: Seconds = TIMEOUT) -> dict[str, Any]:
        """Leave a room. The client has left even if no answer comes, unless it is a refusal."""
        self._typing.forget()
        return await self._engine.leave(room, seconds(timeout, "timeout", positive=True))

    async def publish(
        self, room: str, data: Any = None, event: str = "message", *, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Send to all members of a room, this client included. The answer has ``delivered``,
        and if the room keeps history the message's ``epoch`` and ``offset``."""
        return await self._command("publish", {"room": room, "event": event, "data": data}, timeout)

    async def members(self, room: str, *, timeout: Seconds = TIMEOUT) -> list[dict[str, Any]]:
        """Return all members of a room that the client is in: ``user_id``, ``role``,
        ``connections``.

        ``timeout`` is for each page of a thousand members.
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
        """Return the presence of these users, or of the members of a room: ``online``,
        ``connections`` and ``last_seen`` by user."""
        wanted = {"users": [users] if isinstance(users, str) else list(users)}
        fields = wanted if room is None else {"room": room}
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
        """Tell the other members that the user types, for ``ttl`` seconds (5 by default), or
        does not any more.

        May be called at every key stroke: it is not sent again within half of its ``ttl``.
        ``False`` is always sent, and so is the first call after it, after ``leave``, for another
        room, with another ``ttl``, and on a new connection.
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
        supervisor = self._engine.supervisor
        link = None if supervisor is None else supervisor.link
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
        """Return the newest ``limit`` messages of a room, oldest first, or the first ones after
        ``since``: anything with an epoch and an offset, as a message's ``stream``, a page, or a
        mapping. Raises ``ValueError`` if it has none.
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
        """Return the next message without a callback. The previous one counts as handled
        then, and is acked if the server asked for an ack.

        The iteration ends when the client is closed; after a refusal and ``set_token`` it may
        begin again. One task iterates at a time. ``queue`` messages wait for it; later ones
        are requested again if they have a position in a history, else dropped and counted.
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
