"""A server with people in it, and two that share a bus and a state."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

from eyewall import ConnMeta, MemoryPubSub, MemoryState, Message, Server, UserId
from eyewall.adapters.history import MemoryHistory
from tests.entrypoints.wire import Peer, peer, running

ADA, BEN, CY = UserId("ada"), UserId("ben"), UserId("cy")

NEWS = Message("news", "flash", {"n": 1})


def by_name(handshake: Any) -> ConnMeta:
    """Whoever says a name is that user, with the roles, tags and team that they say."""
    query = handshake.query
    name, team = query.get("name"), query.get("team")
    return ConnMeta(
        user_id=UserId(name) if name else None,
        roles=(query.get("roles") or "").split(),
        tags=(query.get("tags") or "").split(),
        attributes={"team": team} if team else {},
    )


class House:
    """A server, and those who come to it by name."""

    def __init__(self, server: Server, stack: contextlib.AsyncExitStack) -> None:
        self.server = server
        self.hub = server.hub
        self._stack = stack

    async def come(self, name: str = "", **fields: str) -> Peer:
        query = urlencode({"name": name, **fields})
        return await self._stack.enter_async_context(peer(self.server, query=f"?{query}"))


@contextlib.asynccontextmanager
async def open_house(**options: Any) -> AsyncIterator[House]:
    async with (
        running(authenticator=by_name, **options) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        yield House(server, stack)


@contextlib.asynccontextmanager
async def commanded(**options: Any) -> AsyncIterator[Server]:
    """A server whose clients may use the commands."""
    options = {"client_commands": True, "authenticator": by_name, **options}
    async with running(**options) as server:
        yield server


@contextlib.asynccontextmanager
async def two_in(room: str, **options: Any) -> AsyncIterator[tuple[Server, Peer, Peer]]:
    """A server, and ada and ben in a room of it."""
    async with (
        commanded(**options) as server,
        peer(server, query="?name=ada") as ada,
        peer(server, query="?name=ben") as ben,
    ):
        await ada.join(room)
        await ben.join(room)
        yield server, ada, ben


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    """An ack's data without the fields that every ack has."""
    return {k: v for k, v in answer.items() if k not in ("message_id", "status")}


class Pair:
    """Two nodes; ada on the first, ben on the second."""

    def __init__(self, here: Server, there: Server, ada: Peer, ben: Peer) -> None:
        self.here, self.there = here, there
        self.ada, self.ben = ada, ben


@contextlib.asynccontextmanager
async def cluster(**options: Any) -> AsyncIterator[Pair]:
    shared = {
        "pubsub": MemoryPubSub(),
        "state": MemoryState(),
        "history": MemoryHistory(),
        "client_commands": True,
    }
    options = {"authenticator": by_name, **shared, **options}
    async with (
        running(node_id="n1", **options) as here,
        running(node_id="n2", **options) as there,
        peer(here, query="?name=ada&tags=red&roles=staff") as ada,
        peer(there, query="?name=ben&tags=red") as ben,
    ):
        yield Pair(here, there, ada, ben)


async def heard(*clients: Peer) -> list[int]:
    """How many messages each got, before the answer to one more request."""
    return [len(await client.before_fence()) for client in clients]


async def ack(client: Peer, result: object = None, *, nack: str | None = None) -> str:
    """Take the next message and answer it; return its id."""
    message = await client.receive()
    answer: dict[str, Any] = {"status": "ok", "result": result}
    if nack is not None:
        answer = {"status": "nack", "error": nack}
    ref = message["id"]
    await client.send(message["topic"], {"message_id": ref, **answer}, event="ack", ref=ref)
    return str(ref)
