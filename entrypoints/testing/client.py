"""A client in a test, at the other end of a fake link, and the report of a failed test."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from eyewall.application.connections.registry import Connection
from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.connection import DisconnectReason, close_frame
from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.envelope import Envelope, StreamPosition
from eyewall.domain.errors import ConnectionClosed, from_code
from eyewall.domain.history import HistoryPage, wire_position, wire_since
from eyewall.domain.identity import ConnId, RoomId, UserId
from eyewall.testing.links import CODEC, FakeLink
from eyewall.testing.logs import RecordingLogger
from eyewall.testing.world import World

ANSWERS = ("ack", "error")
TIMEOUT = 5.0
"""Seconds that the real client waits for an answer by default."""

SHOWN_ENTRIES = 5
"""Messages, and log entries, in the report of a failed test: the newest."""
SHOWN_WIDTH = 120
"""Characters of each."""
USUAL_LEVELS = ("debug", "info")
"""Log levels that the report leaves out."""


class HubOfClients(Protocol):
    """What a client needs of the ``TestHub`` that it is connected to."""

    world: World
    clients: list[TestClient]
    logs: RecordingLogger
    patience: float

    @property
    def running(self) -> int:
        """The number of handlers that are at work."""

    async def settle(self) -> None:
        """Return when everything has happened that needs no time to pass."""

    def raised_by(self, message_id: str | None) -> BaseException | None:
        """Return what the handler of a message raised unexpectedly; None if it did not."""


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended."""

    reason: DisconnectReason
    code: int
    """The close code that the client got, or 1006 where it got none."""


class TestClient:
    """A client of a ``TestHub``, made by ``connect``.

    Each of its coroutines returns when everything that it has caused has happened. The client
    acks nothing by itself: call ``ack`` or ``nack``.
    """

    __test__ = False  # pytest takes classes of such a name for tests

    def __init__(self, hub: HubOfClients, link: FakeLink, label: str) -> None:
        self.hub = hub
        self.label = label
        """Its name in the report of a failed test: its user, or a number."""
        self.welcome: dict[str, Any] | None = None
        """The data of ``system:welcome``, with ``session=True``; ``receive`` leaves it out."""
        self.taken: list[Envelope | str | bytes] = []
        """The messages that the test has received."""
        self.due: deque[Envelope | str | bytes] = deque()
        """The messages that have arrived and that the test has not received."""
        self._link = link
        self._ended: Closed | None = None
        self._came = asyncio.Event()
        self._number = 0
        link.on_frame = self._on_frame

    def welcomed(self, *, session: bool) -> None:
        """Record that the connection is open; with a session, take its first message."""
        if session and self.due and isinstance(first := self.due.popleft(), Envelope):
            self.welcome = first.data

    # --- its identity

    @property
    def conn(self) -> Connection:
        """The connection on the server's side."""
        conn: Connection = self._link.owner
        return conn

    @property
    def id(self) -> ConnId:
        """The id of its connection."""
        return self.conn.id

    @property
    def user_id(self) -> UserId | None:
        """The user of the connection; None without one."""
        return self.conn.user_id

    @property
    def conn_id(self) -> ConnId:
        """The id of its connection, by the name of the real client."""
        return self.id

    @property
    def rooms(self) -> frozenset[RoomId]:
        """The rooms of its connection."""
        return self.conn.rooms

    @property
    def session(self) -> str | None:
        """The id of the session, for ``resume`` by another client; None without one."""
        return None if self.welcome is None else self.welcome["session"]

    @property
    def closed(self) -> Closed | None:
        """How the connection ended; None while it is open."""
        if self._ended is None and self._link.closed is not None:
            reason = self._link.closed
            self._ended = Closed(reason, close_frame(reason)[0])
        return self._ended

    # --- sending

    async def send(
        self,
        topic: str,
        data: Any = None,
        event: str = "message",
        *,
        ack: bool = False,
        id: str | None = None,
        **fields: Any,
    ) -> str | None:
        """Send a message; returns its id. With ``ack`` it gets an id if none is given.

        ``fields`` are further fields of the envelope: ``ref``, ``namespace``, ``version``,
        ``headers``. Raises ``ConnectionClosed``.
        """
        name = self._new_id() if ack and id is None else id
        envelope: dict[str, Any] = {"topic": topic, "event": event, "data": data, **fields}
        if name is not None:
            envelope["id"] = name
        if ack:
            envelope["ack"] = True
        await self.send_raw(json.dumps(envelope))
        return name

    def _new_id(self) -> str:
        self._number += 1
        return f"{self.label}-{self._number}"

    async def send_raw(self, data: str | bytes) -> None:
        """Send one text (``str``) or binary (``bytes``) frame unchanged; raises
        ``ConnectionClosed``."""
        await self.hub.world.passed()
        if self.closed is not None:
            raise ConnectionClosed(f"{self.label} is closed: {self.closed.reason}")
        payload = data if isinstance(data, bytes) else data.encode()
        with self.hub.world.using_clock():
            self._link.say(payload, binary=isinstance(data, bytes))
        await self.hub.settle()

    async def request(
        self,
        topic: str,
        data: Any = None,
        event: str = "message",
        *,
        timeout: Seconds = TIMEOUT,
        **fields: Any,
    ) -> dict[str, Any]:
        """Send a message that asks for an ack; returns the data of the ack.

        ``timeout`` is that of the real client. It is checked and not used, because no time passes
        by itself; ``TestHub(patience=...)`` sets how long to wait.

        Raises the error class of a refusal, ``ConnectionClosed`` if the connection ended
        instead, and ``AssertionError`` if there is no answer. Other messages stay for
        ``receive``.
        """
        seconds(timeout, "timeout", positive=True)
        asked = await self.send(topic, data, event, **{**fields, "ack": True})
        await self._wait(lambda: self._answer(asked) is not None or self.closed is not None)
        answer = self._answer(asked)
        if answer is None:
            if self.closed is not None:
                raise ConnectionClosed(f"{self.label} was closed: {self.closed.reason}")
            raise AssertionError(nothing_due(self, f"no answer to {topic} is due"))
        self.due.remove(answer)
        self.taken.append(answer)
        result: dict[str, Any] = answer.data
        if answer.event == "error" or result.get("status") == "nack":
            self._refused(result, asked)
        return result

    def _answer(self, asked: str | None) -> Envelope | None:
        for found in self.due:
            if isinstance(found, Envelope) and found.event in ANSWERS and found.ref == asked:
                return found
        return None

    def _refused(self, data: dict[str, Any], asked: str | None) -> NoReturn:
        error = from_code(data.get("code", ""), data.get("error", ""), data)
        raise error from self.hub.raised_by(asked)

    async def ack(self, message: Envelope, result: Any = None) -> None:
        """Acknowledge a message; ``hub.request`` returns ``result``."""
        data = {"message_id": message.id, "status": "ok"}
        await self._answer_with(message, data if result is None else {**data, "result": result})

    async def nack(self, message: Envelope, error: str = "no") -> None:
        """Answer a message that asks for an ack with a nack."""
        await self._answer_with(
            message, {"message_id": message.id, "status": "nack", "error": error}
        )

    async def _answer_with(self, message: Envelope, data: dict[str, Any]) -> None:
        if message.id is None:
            raise ValueError(f"{message!r} has no id: there is nothing to acknowledge")
        await self.send(message.topic, data, "ack", ref=message.id)

    # --- rooms, for servers with client_commands; the same as in ``eyewall.client.Client``

    async def join(
        self, room: str, since: Any = None, *, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Join a room; returns the data of the ack. Raises as ``request`` does.

        With ``since`` the kept messages from there are due first when this returns: ``"start"``,
        a number of newest messages, or an object with a position (the ``stream`` of a message, a
        page, a mapping). ``recovered`` in the data says whether the messages are complete. Raises
        ``ValueError`` for another ``since``.
        """
        data: dict[str, Any] = {"room": room}
        if since is not None:
            data["since"] = wire_since(since)
        return await self._command("join", data, timeout)

    async def leave(self, room: str, *, timeout: Seconds = TIMEOUT) -> dict[str, Any]:
        """Leave a room; returns the data of the ack. Raises as ``request`` does."""
        return await self._command("leave", {"room": room}, timeout)

    async def publish(
        self, room: str, data: Any = None, event: str = "message", *, timeout: Seconds = TIMEOUT
    ) -> dict[str, Any]:
        """Publish to a joined room, also to the client itself; returns the data of the ack."""
        return await self._command("publish", {"room": room, "event": event, "data": data}, timeout)

    async def members(self, room: str, *, timeout: Seconds = TIMEOUT) -> list[dict[str, Any]]:
        """Return all members of a joined room: ``user_id``, ``role``, ``connections``."""
        found: list[dict[str, Any]] = []
        fields: dict[str, Any] = {"room": room}
        while True:
            page = await self._command("members", fields, timeout)
            found += page["members"]
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
        """Return ``online``, ``connections`` and ``last_seen`` by user, for these users or for the
        members of a room."""
        asked = {"users": [users] if isinstance(users, str) else list(users)}
        answer = await self._command("presence", asked if room is None else {"room": room}, timeout)
        found: dict[str, dict[str, Any]] = answer["users"]
        return found

    async def typing(
        self,
        room: str,
        typing: bool = True,
        *,
        ttl: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> None:
        """Tell the other members that the user types, for ``ttl`` seconds, or stopped typing."""
        fields: dict[str, Any] = {"room": room, "typing": typing}
        if ttl is not None:
            fields["ttl"] = seconds(ttl, "ttl", positive=True)
        await self._command("typing", fields, timeout)

    async def history(
        self,
        room: str,
        since: Any = None,
        limit: int = 100,
        *,
        timeout: Seconds = TIMEOUT,
    ) -> HistoryPage:
        """Return the newest ``limit`` messages of a room, oldest first; with ``since`` the first
        ``limit`` after it: an object with an epoch and an offset (the ``stream`` of a message, a
        page, a mapping). Raises ``ValueError`` for another ``since``.
        """
        fields: dict[str, Any] = {"room": room, "limit": count(limit, "limit")}
        if since is not None:
            fields["since"] = wire_position(since)
        answer = await self._command("history", fields, timeout)
        messages = [_envelope(json.dumps(message).encode()) for message in answer["messages"]]
        return HistoryPage(messages, answer.get("epoch"), answer.get("offset"))

    async def _command(self, name: str, fields: dict[str, Any], timeout: Seconds) -> dict[str, Any]:
        return await self.request(f"system:{name}", fields, timeout=timeout)

    # --- receiving

    async def receive(self) -> Envelope:
        """Return the next message; raises ``AssertionError`` at once if none is due."""
        await self._wait(lambda: any(isinstance(one, Envelope) for one in self.due))
        for found in self.due:
            if isinstance(found, Envelope):
                self._take(found)
                return found
        raise AssertionError(nothing_due(self, "no message is due"))

    async def receive_raw(self) -> str | bytes:
        """Return the next frame without an envelope: text as ``str``, binary as ``bytes``."""
        await self._wait(lambda: any(not isinstance(one, Envelope) for one in self.due))
        for found in self.due:
            if not isinstance(found, Envelope):
                self._take(found)
                return found
        raise AssertionError(nothing_due(self, "no raw frame is due"))

    async def received(self) -> list[Envelope]:
        """Return all messages that are due, possibly none."""
        await self.hub.settle()
        found = [one for one in self.due if isinstance(one, Envelope)]
        for one in found:
            self._take(one)
        return found

    def _take(self, one: Envelope | str | bytes) -> None:
        # By identity: comparing would decode messages that the test has not asked for.
        index = next(n for n, found in enumerate(self.due) if found is one)
        del self.due[index]
        self.taken.append(one)

    async def _wait(self, is_there: Any) -> None:
        """Settle the hub; then wait for ``is_there()``, at most the hub's patience long."""
        await self.hub.settle()
        if is_there() or not self.hub.patience:
            return
        try:
            async with asyncio.timeout(self.hub.patience):
                while not is_there():
                    self._came.clear()
                    await self._came.wait()
                    await self.hub.settle()
        except TimeoutError:
            return

    def _on_frame(self) -> None:
        if self._link.closed is not None and self._link.stalled:
            self._link.read()  # a client that knows of the close has read everything before it
        new, self._link.frames = self._link.frames, []
        self.due += map(_read, new)
        self._came.set()

    # --- its network

    @property
    def stalled(self) -> bool:
        """Whether the client does not read at the moment."""
        return self._link.stalled

    @property
    def queued(self) -> int:
        """The number of messages in the server's queue for this client while it is stalled."""
        return self._link.queued

    def stall(self) -> None:
        """Stop reading: the server queues messages, by the policy of its queue."""
        self._link.stalled = True

    def resume_reading(self) -> None:
        """Read again: the queued messages are due."""
        self._link.read()

    async def close(self) -> None:
        """Close the connection with code 1000."""
        await self._end(Closed(DisconnectReason.CLIENT_CLOSED, 1000))

    async def cut(self, reason: DisconnectReason = DisconnectReason.CONNECTION_LOST) -> None:
        """Lose the connection without a close frame."""
        await self._end(Closed(reason, 1006))

    async def _end(self, closed: Closed) -> None:
        await self.hub.world.passed()
        if self.closed is None:
            self._ended = closed
            with self.hub.world.using_clock():
                self._link.vanish(closed.reason)
        await self.hub.settle()

    def __repr__(self) -> str:
        return f"<TestClient {self.label} due={len(self.due)} closed={self.closed}>"


def _read(frame: EncodedMessage) -> Envelope | str | bytes:
    if frame.raw:
        return frame.payload if frame.binary else frame.payload.decode()
    return _envelope(frame.payload)


def _envelope(payload: bytes) -> Envelope:
    envelope = CODEC.decode(payload)
    at = json.loads(payload).get("stream")
    if at is not None:
        envelope.stream = StreamPosition(RoomId(at["room"]), at["epoch"], at["offset"])
    return envelope


# --- what the report of a failed test says


def in_one_line(message: Envelope | str | bytes) -> str:
    """Return a message, or a raw frame, as one line of a report."""
    if not isinstance(message, Envelope):
        return f"raw frame {message!r:.{SHOWN_WIDTH}}"
    ref = f" ref={message.ref}" if message.ref else ""
    return f"{message.topic} {message.event}{ref} {message.data!r:.{SHOWN_WIDTH}}"


def nothing_due(client: TestClient, wanted: str) -> str:
    """Return why ``client`` has not received what the test waits for (``wanted``)."""
    lines = [f"{wanted} for {client.label}"]
    if client.closed is not None:
        reason = client.closed.reason
        lines.append(f"its connection is closed: {reason} ({client.closed.code})")
    if client.stalled:
        lines.append(f"it is stalled, and {client.queued} wait in its queue: resume_reading()")
    lines += _messages("received before", client.taken)
    lines += _messages("due and not received", client.due)
    for other in client.hub.clients:
        if other is not client:
            lines += _messages(f"waiting for {other.label}", other.due)
    running = client.hub.running
    if running:
        lines.append(
            f"running handlers: {running} (waiting for time to pass, th.advance(); for a client; "
            "or for something outside, TestHub(server, patience=...))"
        )
    lines += _logged(client.hub.logs)
    return "\n  ".join(lines)


def _logged(logs: RecordingLogger) -> list[str]:
    """Return the newest warnings and errors."""
    entries = [entry for entry in logs.entries if entry[0] not in USUAL_LEVELS]
    lines = [f"{level} {event} {_fields(fields)}" for level, event, fields in entries]
    return _list("logged", lines)


def story(clients: Iterable[TestClient], logs: RecordingLogger) -> str:
    """Return what the clients received and what was logged: for the report of a failed test."""
    lines = []
    for client in clients:
        closed = "" if client.closed is None else f" (closed: {client.closed.reason})"
        lines += _messages(f"{client.label}{closed} got", client.taken) or [
            f"{client.label}{closed} took nothing"
        ]
        lines += _messages(f"{client.label} did not take", client.due)
    return "\n".join([*lines, *_logged(logs)])


def _messages(title: str, messages: Sequence[Envelope | str | bytes]) -> list[str]:
    return _list(title, [in_one_line(one) for one in messages])


def _list(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = f" (the last {SHOWN_ENTRIES} of {len(lines)})" if len(lines) > SHOWN_ENTRIES else ""
    return [f"{title}{more}:", *(f"  {line}" for line in lines[-SHOWN_ENTRIES:])]


def _fields(fields: dict[str, Any]) -> str:
    return " ".join(f"{k}={v!r:.{SHOWN_WIDTH}}" for k, v in fields.items() if k != "exc_info")
