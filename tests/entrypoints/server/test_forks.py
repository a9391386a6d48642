"""A server at a module's top, in a program that forks: each process has its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.entrypoints.wire import peer, soon

FORKING = Path(__file__).with_name("forking.py")

MANY = 200
"""Connections after which both processes must have accepted one."""


class Program:
    """The program that forks, and what its processes have told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._passed_over: list[dict[str, Any]] = []

    async def told(self, what: str) -> dict[str, Any]:
        """Return the next line that has ``what`` in it; the others are kept."""
        assert self._process.stdout is not None
        for line in self._passed_over:
            if what in line:
                self._passed_over.remove(line)
                return line
        while True:
            text = await soon(self._process.stdout.readline())
            assert text, "the program has ended"
            if what in (found := json.loads(text)):
                return found
            self._passed_over.append(found)


@contextlib.asynccontextmanager
async def forking(way: str) -> AsyncIterator[Program]:
    """Run the program; it ends with its standard input."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(FORKING), way),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        _, complaints = await soon(process.communicate())
    assert b"Traceback" not in complaints, complaints.decode()
    assert process.returncode == 0


async def answers(clients):
    """Let all of them ask at once, several times; return each one's answer."""
    for _ in range(5):
        found = await asyncio.gather(*(client.request("who") for client in clients))
    return found


async def test_parent_and_child_serve_with_what_is_their_own():
    """Each with its own sockets and node id, to clients that are there at the same time."""
    async with forking("fork") as program, AsyncExitStack() as stack:
        nodes = [await program.told("port") for _ in range(2)]
        clients = [
            await stack.enter_async_context(peer(f"ws://127.0.0.1:{node['port']}/ws"))
            for node in nodes * 3
        ]
        found = await answers(clients)

    assert [answer["pid"] for answer in found] == [node["pid"] for node in nodes * 3]
    assert [answer["node_id"] for answer in found] == [node["node_id"] for node in nodes * 3]
    assert len({node["node_id"] for node in nodes}) == 2
    assert all(f"-{node['pid']}-" in node["node_id"] for node in nodes)
    assert len({client.conn_id for client in clients}) == 6


async def test_tornados_preforked_processes_serve_one_port():
    """Routes that were handed out before the fork lead to the process's own node."""
    async with forking("prefork") as program, AsyncExitStack() as stack:
        ports = {(await program.told("accepts"))["accepts"] for _ in range(2)}
        nodes = {(node := await program.told("node_id"))["node_id"]: node["pid"] for _ in range(2)}
        url = f"ws://127.0.0.1:{ports.pop()}/ws"
        clients, seen = [], set()
        while len(clients) < 6 or (len(seen) < 2 and len(clients) < MANY):
            client = await stack.enter_async_context(peer(url))
            clients.append(client)
            seen.add(client.welcome["data"]["node_id"])
        found = await answers(clients)

    assert not ports
    assert seen == set(nodes)
    for client, answer in zip(clients, found, strict=True):
        assert answer["node_id"] == client.welcome["data"]["node_id"]
        assert answer["pid"] == nodes[answer["node_id"]]


async def test_a_fork_of_a_running_server_is_told_to_start_after_the_fork():
    """In words, and the server that runs notices nothing."""
    async with forking("running") as program:
        node = await program.told("node_id")
        tried = [await program.told("tried") for _ in range(2)]
        await program.told("forked")
        async with peer(f"ws://127.0.0.1:{node['port']}/ws") as client:
            assert (await client.request("who"))["pid"] == node["pid"]

    assert [attempt["tried"] for attempt in tried] == ["start", "shutdown"]
    for attempt in tried:
        assert attempt["error"] == "Misuse"
        assert f"process {node['pid']}" in attempt["text"]
        assert "after the fork" in attempt["text"]
