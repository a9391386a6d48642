"""The page about adapters: what it shows passes the contracts, and carries a cluster."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eyewall import MemoryState, Server, Unavailable
from eyewall.adapters.history import MemoryHistory
from eyewall.application.ports import bus, conformance, stores
from eyewall.application.ports.message import Codec
from eyewall.application.ports.plugins import WatchesNode
from eyewall.client import Client
from eyewall.testing.contracts.bus import END, RecordingHandler, opened

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
PAGE = (Path(__file__).parents[1] / "docs" / "write-an-adapter.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "docs"}
    sys.modules.setdefault("docs", type(sys)("docs"))
    exec(compile(block, "docs", "exec"), names)
    return names


relay, wrapped, suite = (run(block) for block in BLOCKS)

# Collected here as in a file of its own.
TestRelayPubSub = relay["TestRelayPubSub"]


class TestTimedState(suite["TestMyState"]):
    """The page's suite, for the page's wrapper: it keeps all promises, the optional ones too."""

    @pytest.fixture
    def connect(self, clock):
        state = wrapped["TimedState"](MemoryState(clock=clock))
        return lambda: state


# --- what the contract can't test: the engine goes away


class Engine:
    """The page's relay, which can be stopped and started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._relay: Any = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._relay = relay["Relay"]()
        self._server = await self._relay.listen(self.path)

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        for writers in self._relay._listening.values():
            for writer in writers:
                writer.transport.abort()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path / "relay")
    await engine.start()
    yield engine
    engine.stop()


async def test_without_its_engine_a_start_fails(tmp_path):
    bus = relay["RelayPubSub"](tmp_path / "nothing")
    relay_waits, relay["IN_TIME"] = relay["IN_TIME"], 0.1
    try:
        with pytest.raises(Unavailable, match="no relay answers"):
            await bus.open()
    finally:
        relay["IN_TIME"] = relay_waits


async def test_it_says_that_its_engine_is_away_and_comes_back_by_itself(engine):
    async with opened(relay["RelayPubSub"](engine.path)) as bus:
        handler = RecordingHandler(10 * UNIT)
        await bus.subscribe("room:lab", handler)

        engine.stop()
        async with asyncio.timeout(10 * UNIT):
            while True:
                try:
                    await bus.publish("room:lab", b"before it is noticed")
                except Unavailable:
                    break
        await engine.start()
        async with asyncio.timeout(10 * UNIT):
            await bus._connected.wait()
        await bus.publish("room:lab", END)

        assert await handler.until_end() == []


async def test_two_servers_are_a_cluster_by_it(engine):
    state, history = MemoryState(), MemoryHistory()

    def server() -> Server:
        return Server(
            pubsub=relay["RelayPubSub"](engine.path),
            state=state,
            history=history,
            client_commands=True,
            allow_unsafe={"split_state"},
        )

    one, two = server(), server()
    await one.start(port=0)
    await two.start(port=0)
    try:
        async with Client(one.url) as ada, Client(two.url) as ben:
            heard: asyncio.Queue[Any] = asyncio.Queue()
            ben.on("room:lab", lambda message: heard.put_nowait(message.data))
            await ben.join("lab")
            await ada.join("lab")
            await ada.publish("lab", "across")
            async with asyncio.timeout(10 * UNIT):
                assert await heard.get() == "across"
    finally:
        await two.shutdown(0)
        await one.shutdown(0)


# --- the tables


def rows(section: str) -> dict[str, list[str]]:
    text = PAGE.partition(f"## {section}")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    cells = [re.split(r" \| ", line.replace("\\|", "/")) for line in lines]
    return {first.split("`")[1]: rest for first, *rest in cells}


PORTS = {**{port.__name__: port for port in conformance.PORTS.values()}, "Codec": Codec}
OPTIONAL = {
    "Metrics": WatchesNode,
    "PubSub": bus.CountsSubscribers,
    "StateStore": stores.KnowsOwned,
}


@pytest.mark.parametrize("name", PORTS)
def test_the_page_names_every_method_of_a_port(name):
    """A method that a port gets later has to be told here."""
    found = set(re.findall(r"\b[a-z_]+\b", " ".join(rows("The ports")[name])))

    wanted = set(stores.methods(PORTS[name]))
    wanted |= set(stores.methods(OPTIONAL[name])) if name in OPTIONAL else set()
    assert wanted <= found


def test_the_page_has_every_port():
    assert set(rows("The ports")) == set(PORTS)


@pytest.mark.parametrize("name", ["Bus", "State", "History", "Offline"])
def test_every_suite_is_named_on_the_page(name):
    assert f"`{name}Contract`" in PAGE
