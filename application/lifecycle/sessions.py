"""Sessions: a client that lost its connection resumes its rooms and the answers to its requests.

Rules of this file:

1. The node that had the connection keeps its session; the session's name contains the node.
   A node that shuts down in order stores its sessions in the state.
2. A session has one connection. A connection that resumes it ends the one that had it.
3. Requests in flight move with the session. On the same node their answers reach the new
   connection; another node gets the session when they have been answered.
4. A connection waits for a session that is being handed to it. If the connection has ended
   meanwhile, its own session gets what is handed over: a client that loses its connection
   twice loses no request.
5. A session remembers rooms and grants no right to them: they are joined under their rules.
6. A session belongs to a user. If the user logged in by a message, a client with the same
   handshake identity and the session's name may resume it too. That client gets the user
   back, because the session's requests and rooms are that user's.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from eyewall.application.cluster.packet import BadPacket
from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import ForgetSessions, TakeSession
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.concurrency.tasks import briefly
from eyewall.application.concurrency.timers import Deadline, TimerQueue
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import StateStore
from eyewall.domain.connection import COMES_BACK, DisconnectReason
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, ConnMeta, NodeId, RoomId, UserId, node_of
from eyewall.domain.request_log import RequestLog
from eyewall.domain.session import (
    MAX_NAME,
    KeptSessions,
    Session,
    SessionName,
    became,
    conn_of,
    name_of,
    same,
)

MOVES = 8
"""Successors of a session that are followed at most: a client may have missed some of them."""


IN_FLIGHT_TIMEOUT = 3.0
"""Seconds to wait for requests in flight: less than the time-out of a request between nodes."""


LEAVING = 2.0
"""Seconds that a node has to store its sessions at shutdown: 100,000 of them are some 50 MiB."""


SKEW = 0.05
"""Seconds by which the clocks of two nodes may differ: less than a client takes to reconnect."""


_MARK = "sent away: "
"""Prefix of the keys of marks (see ``Sessions.forget``) in the state; no session's name has it."""


def new_name(conn_id: ConnId) -> SessionName:
    """Return an unguessable name for the session that begins with a connection."""
    return name_of(secrets.token_urlsafe(24), conn_id)


class Sessions:
    """The sessions of this node's connections, open and lost."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster: Cluster,
        state: StateStore,
        connections: Connections,
        clock: Clock,
        stalls: Stalls,
        logger: Logger,
        ttl: float,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._state = state
        self._connections = connections
        self._clock = clock
        self._logger = logger
        self._ttl = ttl
        self._kept = KeptSessions()
        self._deadlines = TimerQueue(clock, stalls)
        stalls.on_stall(self._kept.postpone)  # no client could reconnect during the stall
        self._next: Deadline | None = None
        self._arriving: dict[SessionName, set[asyncio.Event]] = {}
        """Sessions that an earlier one is being handed to, each with the events of its waiters."""
        self._under_way: dict[SessionName, set[object]] = {}
        """Sessions that take over an earlier one, each with the users forgotten meanwhile."""
        self._returning: dict[ConnId, frozenset[RoomId]] = {}
        """Connections that rejoin the rooms of their session, each with those rooms."""
        self.change_identity: Callable[[str, dict[str, Any]], object]
        """Changes a connection's ``ConnMeta``; set when the node is built."""
        cluster.on_request(TakeSession, self._handle_take)
        cluster.on_event(ForgetSessions, self._take_forget)

    def __len__(self) -> int:
        return len(self._kept)

    # --- a connection ends

    def ended(self, conn: Connection, reason: DisconnectReason) -> None:
        """Keep the session of a connection that has ended, if its client may come back.

        The session of a connection that was never admitted is not kept.
        """
        if conn.session is None or reason not in COMES_BACK or not conn.is_admitted:
            self._returning.pop(conn.id, None)
            return
        self._keep(SessionName(conn.session), self._session_of(conn))
        self._returning.pop(conn.id, None)

    def _session_of(self, conn: Connection) -> Session:
        rooms = self._returning.get(conn.id, frozenset()).union(conn.roles)
        return Session(
            conn.user_id,
            rooms,
            conn.request_log,
            came_as=conn.initial_meta.user_id,
            identity=became(conn.meta, conn.initial_meta),
        )

    async def forget(self, user_id: UserId) -> None:
        """Drop the user's sessions on all nodes, stored ones included. Raises ``Unavailable``.

        The user was disconnected for good. Sessions that former nodes have stored in the state
        can't be found by user. So the state gets a mark that outlives them; a node that takes
        such a session checks the mark.
        """
        await self.drop(user_id)
        if self._ttl:
            now = self._clock.wall().timestamp()
            mark = json.dumps([now, now + self._ttl])
            await self._state.keep_sessions({_MARK + user_id: (mark, self._ttl)})

    async def drop(self, user_id: UserId) -> None:
        """Drop the sessions that running nodes keep for a user now; stored ones stay."""
        self._forget(user_id)
        await self._cluster.notify_all(ForgetSessions(user_id))

    def _forget(self, user_id: object) -> None:
        for forgotten in self._under_way.values():
            forgotten.add(user_id)
        for name, session, _ in self._kept.all(self._clock.now()):
            if session.user_id == user_id:
                self._kept.drop(name)

    def _take_forget(self, told: ForgetSessions, _: bytes) -> None:
        self._forget(told.user)

    def _keep(self, name: SessionName, session: Session) -> None:
        if self._ttl:
            self._kept.keep(name, session, self._clock.now() + self._ttl)
            self._arm()

    def _arm(self) -> None:
        due = self._kept.next_due()
        if self._next is None and due is not None:
            self._next = self._deadlines.at(due, self._expire)

    def _expire(self) -> None:
        self._next = None
        self._kept.expire(self._clock.now())
        self._arm()

    # --- a client comes back

    async def resume(self, name: str, conn: Connection) -> Session | None:
        """Hand the session ``name`` to ``conn`` and return it; None if it is unknown or another
        user's.

        The session's rooms are remembered until ``returned``. Raises ``Unavailable`` if the
        node that has the session does not answer.
        """
        if conn.session is None or not conn.is_open or len(name) > MAX_NAME:
            return None
        if name.startswith(_MARK):
            return None
        own = SessionName(conn.session)
        self._under_way[own] = set()
        waiting = self._arriving.setdefault(own, set())
        try:
            return await self._follow(name, conn, own)
        finally:
            self._arriving.pop(own, None)
            self._under_way.pop(own, None)
            for over in waiting:
                over.set()

    def returned(self, conn: Connection) -> None:
        """Note that the connection has rejoined its rooms: its session has these from now on."""
        self._returning.pop(conn.id, None)

    async def _follow(self, name: str, conn: Connection, own: SessionName) -> Session | None:
        """Return the session, following ``MOVES`` successors at most; None if there is none."""
        for _ in range(MOVES):
            found = await self._find(name, conn, own)
            if found is None or found.superseded_by is None:
                return found
            if same(found.superseded_by, own):
                return None  # the connection has it already
            name = found.superseded_by
        return None

    async def _find(self, name: str, conn: Connection, own: SessionName) -> Session | None:
        """Take the session from this node, another node, or the state; None if it is not found."""
        node = node_of(name)
        found: Session | None = None
        if node == self._node:
            if not same(name, own):
                await self._arrived(name)
            found = self._give_up(
                name, conn.user_id, conn.initial_meta.user_id, own, conn.connected_at
            )
        elif node and await self._cluster.is_alive(node):
            found = await self._ask(node, name, conn, own)
        if found is None:
            found = await self._take_left(name)
        # Checked again after the wait: the connection may belong to another user by now.
        if found is None or not self._is_for(found, conn.user_id, conn.initial_meta.user_id):
            return None
        if found.user_id in self._under_way.get(own, ()):
            return None  # its user was forgotten meanwhile
        if found.superseded_by is None:
            self._go_on(conn, own, found)
        return found

    async def _take_left(self, name: str) -> Session | None:
        """Take a session out of the state; None if there is none, or if its user was forgotten
        after it was stored."""
        record = await self._state.take_session(name)
        if record is None:
            return None
        found, kept_at = _read(record), _kept_at(record)
        if found.user_id is None:
            return found
        key = _MARK + found.user_id
        mark = await self._state.take_session(key)
        if mark is None:
            return found
        sent_away, until = _times(mark)
        left = until - self._clock.wall().timestamp()
        if left > 0:  # taking removes the mark, and other sessions need it too
            await self._state.keep_sessions({key: (mark, left)})
        return found if kept_at > sent_away + SKEW else None

    async def _arrived(self, name: str) -> None:
        """Wait until no earlier session is being handed to this one.

        Raises ``Unavailable`` after ``IN_FLIGHT_TIMEOUT`` seconds.
        """
        waiting = self._arriving.get(SessionName(name))
        if waiting is None:
            return
        over = asyncio.Event()
        waiting.add(over)
        deadline = self._deadlines.at(self._clock.now() + IN_FLIGHT_TIMEOUT, over.set)
        await over.wait()
        deadline.cancel()
        waiting.discard(over)
        if SessionName(name) in self._arriving:
            raise Unavailable("the session is still on its way")

    async def _ask(
        self, node: NodeId, name: str, conn: Connection, successor: SessionName
    ) -> Session | None:
        asked = TakeSession(
            name, conn.user_id, conn.initial_meta.user_id, successor, conn.connected_at
        )
        answer = await self._cluster.request(node, asked)
        return None if answer is None else _read(answer)

    def _go_on(self, conn: Connection, own: SessionName, found: Session) -> None:
        """Give the connection the session's request log, rooms and user.

        If the connection has ended meanwhile, its own kept session gets them.
        """
        if found.request_log is not None:
            if conn.request_log is not None:
                found.request_log.merge(conn.request_log)
            found.request_log.successor = conn
            conn.request_log = found.request_log
        if conn.is_open:
            self._returning[conn.id] = found.rooms
            if conn.user_id != found.user_id and found.identity is not None:
                self.change_identity(conn.id, dict(found.identity))
        elif (kept := self._kept.find(own, self._clock.now())) is not None:
            rooms = kept.rooms | found.rooms
            self._keep(own, replace(found, rooms=rooms, request_log=conn.request_log))

    def _is_for(self, session: Session, user_id: UserId | None, came_as: UserId | None) -> bool:
        return session.is_for(user_id, came_as, self._clock.wall())

    def _give_up(
        self,
        name: str,
        user_id: UserId | None,
        came_as: UserId | None,
        successor: SessionName,
        since: datetime,
    ) -> Session | None:
        """Hand a session of this node to ``successor`` and return it; None if this node does not
        have it, or the user has no right to it.

        ``since`` is when the successor's connection began. The connection that has the session
        ends; one that is newer than ``since`` keeps it.
        """
        session = self._kept.find(name, self._clock.now())
        conn = None if session is not None else self._holder(name)
        if conn is not None:
            session = self._session_of(conn)
        if session is None or same(name, successor) or not self._is_for(session, user_id, came_as):
            return None
        if conn is not None and conn.connected_at > since:
            return None  # the resume is late: the client has a newer connection
        if session.request_log is not None:
            session.request_log.forget_bound()
        if session.superseded_by is None:
            superseded = replace(
                session, rooms=frozenset(), request_log=None, superseded_by=successor
            )
            self._keep(SessionName(name), superseded)
        if conn is not None:
            conn.session = None  # its end keeps no session
            self._connections.end(conn, DisconnectReason.CONNECTION_LOST)
        return session

    def _holder(self, name: str) -> Connection | None:
        """Return the open connection that has the session; None if there is none."""
        conn = self._connections.get(conn_of(name))
        if conn is None or conn.session is None or not same(conn.session, name):
            return None
        return conn

    async def _handle_take(self, asked: TakeSession, _: bytes) -> Any:
        """Hand a session to the node that has the client's new connection; None if it can't be."""
        await self._arrived(asked.name)
        when = asked.since + timedelta(seconds=SKEW)
        successor = SessionName(asked.successor)
        session = self._give_up(asked.name, asked.user, asked.came_as, successor, when)
        if session is None:
            return None
        if session.request_log is not None:
            await self._answered(session.request_log)
        return _record(session)

    async def _answered(self, log: RequestLog) -> None:
        """Wait until no request is in flight, ``IN_FLIGHT_TIMEOUT`` seconds at most."""
        over = asyncio.Event()
        log.when_idle = over.set
        deadline = self._deadlines.at(self._clock.now() + IN_FLIGHT_TIMEOUT, over.set)
        if log.in_flight:
            await over.wait()
        deadline.cancel()
        log.when_idle = None

    # --- the node shuts down

    async def leave(self) -> None:
        """Store the kept sessions in the state: the clients will reconnect to other nodes."""
        now = self._clock.wall().timestamp()
        records: dict[str, tuple[str, float]] = {
            name: (_record(session, now + left - self._ttl), left)
            for name, session, left in self._kept.all(self._clock.now())
        }
        if not records:
            return
        try:
            await briefly(self._state.keep_sessions(records), LEAVING)
        except Unavailable as error:
            self._logger.warning("sessions_not_kept", sessions=len(records), error=told(error))
        self._kept.clear()

    def close(self) -> None:
        """End the timer."""
        self._next = None
        self._deadlines.close()


def _record(session: Session, kept_at: float = 0.0) -> str:
    """Return a session as JSON text; each answer stands in it as a text of JSON.

    ``kept_at`` is the wall-clock time when the connection was lost, for sessions in the state.
    """
    answers = [] if session.request_log is None else session.request_log.answers()
    fields = {
        "user": session.user_id,
        "rooms": sorted(session.rooms),
        "answers": [[request_id, answer.decode()] for request_id, answer in answers],
        "moved": session.superseded_by,
        "kept_at": kept_at,
    }
    if session.identity is None:
        return json.dumps(fields)
    try:
        identity = {name: _plain(value) for name, value in session.identity.items()}
        return json.dumps({**fields, "came": session.came_as, "identity": identity})
    except (TypeError, ValueError):
        # The application's attributes are not JSON: the client has to log in again.
        return json.dumps(fields)


def _plain(value: Any) -> Any:
    """Return a field of ``ConnMeta`` as a value that JSON can hold."""
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return dict(value) if isinstance(value, Mapping) else value


def _identity(fields: Any) -> Mapping[str, Any] | None:
    """Read the identity that ``_record`` wrote; raises as ``ConnMeta`` does."""
    if fields is None:
        return None
    if fields.get("expires_at") is not None:
        fields["expires_at"] = datetime.fromisoformat(fields["expires_at"])
    meta = ConnMeta(**fields)
    return {name: getattr(meta, name) for name in fields}


def _kept_at(record: str) -> float:
    """Return when a record's connection was lost; 0 for a record of an older release."""
    kept_at = json.loads(record).get("kept_at")
    return float(kept_at) if isinstance(kept_at, int | float) else 0.0


def _times(mark: str) -> tuple[float, float]:
    """Return when a user was forgotten and when the mark expires; raises ``BadPacket``."""
    try:
        sent_away, until = json.loads(mark)
        return float(sent_away), float(until)
    except (TypeError, ValueError) as error:
        raise BadPacket(f"not a mark: {error}") from None


def _read(record: Any) -> Session:
    """Read what ``_record`` wrote; raises ``BadPacket``: the store is a trust boundary."""
    try:
        fields = json.loads(record)
        log = RequestLog()
        for request_id, answer in fields["answers"]:
            log.record(request_id, answer.encode())
        rooms = frozenset(RoomId(room_id) for room_id in fields["rooms"])
        superseded_by = None if fields["moved"] is None else SessionName(fields["moved"])
        identity = _identity(fields.get("identity"))
        return Session(fields["user"], rooms, log, superseded_by, fields.get("came"), identity)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadPacket(f"not a session: {error}") from None
