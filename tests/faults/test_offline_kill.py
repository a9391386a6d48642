"""A server that is killed between store and ack loses no message that it said it had stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.domain.identity import UserId
from tests.faults.support import WITHIN, die_with_parent

ADA = UserId("ada")
KILLS = 12
APP = Path(__file__).with_name("offline_app.py")


class App:
    """A process of ``offline_app`` and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[list[str]] = []
        self.news = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(line.decode().split())
            self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has made ``condition`` true, and told ``news``."""
        async with asyncio.timeout(WITHIN):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def says(self, lines: int) -> None:
        """Wait until it has said so many lines."""
        await self.until(lambda: len(self.said) >= lines)

    async def kill(self) -> None:
        """End it at once, and read up what it had said."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.said[0][1]}/ws?name=ada"


@asynccontextmanager
async def app(what: str, path: Path, first: int):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(APP), what, str(path), str(first)),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
    )
    running = App(process)
    try:
        yield running
    finally:
        await running.kill()


class Ada:
    """What she has got over all her connections; she answers as ``mood`` says."""

    def __init__(self, seed: int) -> None:
        self.got: dict[str, int] = {}
        self.times: dict[str, int] = defaultdict(int)
        self.acked: set[str] = set()
        self._luck = random.Random(seed)

    @property
    def frames(self) -> int:
        return sum(self.times.values())

    async def listen(self, server: App, mood: float) -> None:
        """Take what comes, ack it with the probability ``mood``, until the server is gone."""
        with contextlib.suppress(ConnectionClosed, InvalidMessage, OSError):
            async with connect(server.url, ping_interval=None, max_queue=None) as socket:
                async for frame in socket:
                    message = json.loads(frame)
                    self.take(message)
                    server.news.set()
                    if self._luck.random() < mood:
                        ack = {"topic": message["topic"], "event": "ack", "ref": message["id"]}
                        self.acked.add(message["id"])
                        await socket.send(json.dumps(ack))

    def take(self, message: dict) -> None:
        assert message["ack"] is True, "without that she could not answer"
        known = self.got.setdefault(message["id"], message["data"])
        assert known == message["data"], "an id means one message"
        self.times[message["id"]] += 1


async def kept(path: Path) -> int:
    store = SqliteOffline(path)
    await store.open()
    try:
        return len(await store.waiting(ADA, 0, 100_000, datetime.now(UTC)))
    finally:
        await store.close()


async def test_a_server_killed_between_store_and_ack_loses_nothing(tmp_path):
    path, luck, ada = tmp_path / "offline.db", random.Random(7), Ada(8)
    stored: dict[str, int] = {}
    left_behind = 0
    for kill in range(KILLS):
        async with app("serve", path, kill * 100_000) as server:
            await server.says(1)
            mood = luck.choice([0.0, 0.5, 1.0])
            listening = asyncio.ensure_future(ada.listen(server, mood))
            # What ada gets counts too: while she is silent, newer messages wait.
            until = ada.frames + luck.randrange(1, 80)
            await server.until(lambda said=server.said, until=until: ada.frames + len(said) > until)
            await server.kill()
            await listening
        assert "lost" not in {what for what, *_ in server.said}
        stored |= {said[1]: int(said[2]) for said in server.said if said[0] == "stored"}
        left_behind += await kept(path) > 0
    assert len(stored) > KILLS
    assert left_behind, "nothing was ever killed between store and ack"

    async with app("serve", path, -1) as server:
        await server.says(1)
        listening = asyncio.ensure_future(ada.listen(server, 1.0))
        async with asyncio.timeout(WITHIN):
            while await kept(path):
                await asyncio.sleep(0.05)
        await server.kill()
        await listening

    assert stored.items() <= ada.got.items(), "what was reported as stored was delivered"
    assert stored.keys() <= ada.acked, "and kept until it was acked"
    numbers = list(ada.got.values())
    assert len(set(numbers)) == len(numbers), "a message comes again under its own id only"
    assert max(ada.times.values()) > 1, "some did come again"


async def test_a_write_that_is_cut_off_leaves_what_was_written_before(tmp_path):
    path, luck = tmp_path / "offline.db", random.Random(9)
    stored: set[str] = set()
    for kill in range(KILLS):
        async with app("write", path, kill * 100_000) as writer:
            await writer.says(luck.randrange(1, 200))
        stored |= {said[1] for said in writer.said}

        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = {row[0] for row in db.execute("SELECT id FROM messages")}
        assert stored <= found
