"""The server that these tests break: ``eyewall serve hub_app:server``.

``HUB_APP`` in the environment says what it is like. It takes commands on standard input
and answers on standard output, both as lines of JSON; what its hooks hear goes into a
file, so that it can still be read when the process is gone.

A client says in its query who it is and how it behaves: ``/ws?user=ada&rooms=lab,hall``.
``auth=GATE`` and ``connect=GATE`` keep it waiting until the test opens that gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import ssl
import sys
import threading
import time
import tracemalloc
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from census import census  # beside this file, as for any application
from writes import watch, writes

import eyewall
from eyewall import (
    CompressionConfig,
    ConnMeta,
    Failure,
    Forbidden,
    HeartbeatConfig,
    MemoryPubSub,
    MemoryState,
    Message,
    QueueConfig,
    Server,
    Target,
)
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.web.sockets import loop
from eyewall.domain.report import AckOptions
from eyewall.domain.session import Session

LIKE: dict[str, Any] = json.loads(os.environ.get("HUB_APP", "{}"))
OPTIONS: dict[str, Any] = LIKE.get("options", {})
OPTIONS |= {
    name: kind(**OPTIONS[name])
    for name, kind in {
        "queue": QueueConfig,
        "heartbeat": HeartbeatConfig,
        "compression": CompressionConfig,
    }.items()
    if name in OPTIONS
}

loop.MAX_QUEUED_BYTES = LIKE.get("max_queued", loop.MAX_QUEUED_BYTES)

COUNTED = ("connections", "users", "rooms", "drops", "loop_stalls")

gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
failures: Counter[str] = Counter()


def note(*what: str | None) -> None:
    with Path(LIKE["notes"]).open("a") as notes:
        print(*what, file=notes)


async def never_end() -> None:
    """Wait for nothing, whoever asks to stop it."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


class Timed(Server):
    """Its deadline is the test's, also where nobody names one."""

    async def shutdown(self, timeout: Any = LIKE.get("deadline", 10.0)) -> None:  # noqa: B008
        await super().shutdown(timeout)


async def authenticate(handshake: Any) -> ConnMeta | None:
    asked = handshake.query
    if "deny" in asked:
        return None
    user = asked.get("user")
    if gate := asked.get("auth"):
        note("auth", user)
        await gates[gate].wait()
    expires = asked.get("expires")
    attributes = {n: v for n in ("rooms", "connect", "refuse", "disconnect") if (v := asked.get(n))}
    return ConnMeta(
        user_id=user,
        attributes=attributes,
        tags=[f"tag-{user}"],
        expires_at=None
        if expires is None
        else datetime.now(UTC) + timedelta(seconds=float(expires)),
    )


def add_hooks(server: Server) -> None:
    hub = server.hub

    @hub.on_connect
    async def connected(conn: Any) -> None:
        note("connect", conn.id, conn.user_id)
        asked = conn.meta.attributes
        for room in filter(None, asked.get("rooms", "").split(",")):
            await hub.join(room, conn.id)
        if "connect" in asked:
            await gates[asked["connect"]].wait()
        if "refuse" in asked:
            raise Forbidden("not today")

    @hub.on_disconnect
    async def disconnected(conn: Any, reason: str) -> None:
        note("disconnect", conn.id, conn.user_id, reason)
        gate = conn.meta.attributes.get("disconnect")
        if gate == "deaf":
            await never_end()
        elif gate:
            await gates[gate].wait()

    @hub.on_join
    def joined(room_id: str, conn: Any) -> None:
        note("join", conn.id, room_id)

    @hub.on_leave
    def left(room_id: str, conn: Any, _reason: str) -> None:
        note("leave", conn.id, room_id)

    @hub.on_queue_full
    def full(failure: Failure) -> None:
        failures[str(failure.reason)] += 1


def add_handlers(server: Server) -> None:
    hub = server.hub

    @server.on("work:echo")
    async def echo(_ctx: Any, msg: Any) -> Any:
        return {"echo": msg.data}

    @server.on("work:count")
    async def count(_ctx: Any, _msg: Any) -> int:
        return hub.stats().in_messages

    @server.on("work:nap")
    async def nap(_ctx: Any, msg: Any) -> None:
        await asyncio.sleep(msg.data["seconds"])

    @server.on("work:gate")
    async def gate(ctx: Any, msg: Any) -> None:
        note("working", ctx.conn.id)
        await gates[msg.data["gate"]].wait()

    @server.on("work:stubborn")
    async def stubborn(ctx: Any, _msg: Any) -> None:
        note("working", ctx.conn.id)
        await never_end()

    @server.on("work:thread")
    def in_thread(ctx: Any, _msg: Any) -> None:
        note("working", ctx.conn.id)
        threading.Event().wait()

    @server.on("work:block")
    async def block(ctx: Any, _msg: Any) -> None:
        note("working", ctx.conn.id)
        time.sleep(1000)

    @server.on("work:freeze")
    async def freeze(_ctx: Any, msg: Any) -> None:
        time.sleep(msg.data["seconds"])  # on purpose: the loop stands still

    @server.on("relay")
    async def relay(_ctx: Any, msg: Any) -> None:
        kind, _, name = msg.data["to"].partition(":")
        if kind == "room":
            await hub.broadcast_room(name, "relay", "message", msg.data)
        else:
            await hub.send_to_user(name, Message("relay", "message", msg.data))


def make_servers() -> list[Server]:
    shared: dict[str, Any] = {}
    if LIKE.get("nodes", 1) > 1:
        parts = {"pubsub": MemoryPubSub(), "state": MemoryState(), "history": MemoryHistory()}
        shared |= parts
    return [make_server(f"n{n}", shared) for n in range(LIKE.get("nodes", 1))]


def make_server(name: str, shared: dict[str, Any]) -> Server:
    # Sessions outlive their connections, and have to be gone soon after them too.
    options = {"session_ttl": 0.2, **OPTIONS, **shared}
    made = Timed(authenticator=authenticate, node_id=name, **options)
    add_hooks(made)
    add_handlers(made)
    return made


servers = make_servers()
server = servers[0]
"""The one that ``eyewall serve`` runs; the others run beside it."""


# --- what the test asks


class Asked:
    """One method per command."""

    async def ports(self) -> list[int]:
        while any(each.port is None for each in servers):
            await asyncio.sleep(0.005)
        return [each.port or 0 for each in servers]

    async def open(self, gate: str) -> None:
        gates[gate].set()

    async def publish(self, room: str, first: int, count: int, pad: int) -> int:
        """Publish numbered messages; returns how many deliveries were meant."""
        data = {"pad": "x" * pad}
        return sum(
            [
                await server.hub.broadcast_room(room, "news", "message", {"n": n, **data})
                for n in range(first, first + count)
            ]
        )

    async def emit(self, user: str, count: int, timeout: float) -> dict[str, int]:
        """Send with acks, all at once; returns how many were wanted and came."""
        options = AckOptions(timeout=timeout)
        target = Target.user(user)
        results = await asyncio.gather(
            *(
                server.hub.emit_with_ack(target, Message("asked", "message", n), options)
                for n in range(count)
            )
        )
        return {
            "expected": sum(result.expected for result in results),
            "received": sum(result.received for result in results),
        }

    async def emit_later(self, user: str) -> None:
        """Send with an ack that may never come."""
        server.background(self.emit(user, 3, 60.0))

    async def queued(self, user: str) -> int:
        """How many messages wait because the user does not read."""
        conns = map(server.hub.connection, server.hub.user_connections(user))
        return sum(conn.link.queued for conn in conns if conn is not None)

    async def links(self) -> int:
        """How many sockets are open, those that are being closed too."""
        return sum(len(each._transport) for each in servers)

    async def watch_writes(self, stop_at: int) -> None:
        """Note from now on who is written to; with the ``stop_at``th write the process stops."""
        watch(server._transport._io.links, stop_at)

    async def written(self) -> list[str]:
        return writes

    async def disconnect(self, user: str) -> int:
        return await server.hub.disconnect_user(user)

    async def stats(self) -> dict[str, Any]:
        stats = server.hub.stats()
        return {
            **{name: getattr(stats, name) for name in COUNTED},
            "reported": dict(failures),
        }

    async def cluster(self, users: list[str], room: str) -> list[Any]:
        """What each node thinks of presence and membership."""
        seen = []
        for each in servers:
            present = await each.hub.presence_many(users)
            members = await each.hub.members(room)
            seen.append(
                {
                    "present": {user: state.connections for user, state in present.items()},
                    "members": {str(m.user_id): m.connections for m in members},
                }
            )
        return seen

    async def held(self) -> dict[str, int]:
        """What is kept for connections: bytes that wait to be written, and how many have
        sent the beginning of something."""
        nodes = [each._transport._io for each in servers]
        return {
            "queued": sum(one.pool.bytes for one in nodes),
            "begun": sum(link._parser is not None for one in nodes for link in one.links),
        }

    async def census(self) -> dict[str, int]:
        return census()

    async def sessions(self) -> int:
        """How many are kept: of the census this is what takes the longest to be as before."""
        gc.collect()
        return sum(isinstance(each, Session) for each in gc.get_objects())

    async def allocated(self) -> dict[str, int]:
        """How many blocks of memory each line of the package has in use."""
        # It keeps a string for each attribute that C code has asked for by a name of its own.
        sys._clear_type_cache()
        gc.collect()
        ours = tracemalloc.Filter(inclusive=True, filename_pattern=f"{eyewall.__path__[0]}/*")
        lines = tracemalloc.take_snapshot().filter_traces([ours]).statistics("lineno")
        return {str(line.traceback): line.count for line in lines}

    async def open_spare(self) -> int:
        """Start one more server, for a while; returns its port."""
        spare = make_server("spare", {})
        servers.append(spare)
        await spare.start(port=0)
        return spare.port or 0

    async def close_spare(self) -> None:
        await servers.pop().shutdown()


async def answer() -> None:
    """Do what standard input says, one line after the other."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    asked = Asked()
    while line := await reader.readline():
        command = json.loads(line)
        result = await getattr(asked, command.pop("do"))(**command)
        print(json.dumps(result), flush=True)


@server.on_startup
async def start_others() -> None:
    context = None
    # The first server has its certificate from the environment, where it has one.
    if pem := os.environ.get("EYEWALL_TLS__CERT") or LIKE.get("certificate"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    for each in servers[1:]:
        await each.start(port=0, ssl=context)
    server.background(answer)


@server.on_shutdown
async def stop_others() -> None:
    for each in servers[1:]:
        await each.shutdown()
