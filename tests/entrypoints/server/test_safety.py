"""A bus that reaches other nodes, with state or history that does not: refused at the start."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from dependency_injector import providers

from eyewall import (
    MemoryPubSub,
    MemoryState,
    Misuse,
    RoomOptions,
    Server,
    Settings,
    UnsafeConfiguration,
)
from eyewall.adapters.history import MemoryHistory
from eyewall.container import Container
from eyewall.settings.groups import ServerSettings, SettingsError
from eyewall.testing import TestHub
from tests.application.fakes import RecordingLogger
from tests.entrypoints.wire import eventually, peer, running

ALLOWED = {"allow_unsafe": {"split_state"}}


class Broker:
    """Somebody's own bus, which says nothing of itself."""

    def __init__(self):
        self.inner = MemoryPubSub()

    async def open(self):
        await self.inner.open()

    async def close(self):
        await self.inner.close()

    async def publish(self, channel, payload):
        await self.inner.publish(channel, payload)

    def subscribe(self, channel, handler):
        return self.inner.subscribe(channel, handler)


class State(MemoryState):
    """One that other nodes share, too."""

    across_processes = True


class History(MemoryHistory):
    across_processes = True


UNSAFE = {
    "both left out": ({}, "state and history are"),
    "both in memory": ({"state": MemoryState(), "history": MemoryHistory()}, "state and history"),
    "state left out": ({"history": History()}, "and state is"),
    "history left out": ({"state": State()}, "and history is"),
    "history in memory": ({"state": State(), "history": MemoryHistory()}, "and history is"),
}


@pytest.mark.parametrize("name", UNSAFE)
async def test_a_bus_of_ones_own_with_state_or_history_in_memory_is_refused(name):
    """In words that say what to do; nothing has been opened by then."""
    given, told = UNSAFE[name]
    server, hooks = Server(pubsub=Broker(), **given), []
    server.on_startup(lambda: hooks.append("startup"))

    with pytest.raises(UnsafeConfiguration, match="Broker reaches other nodes") as refused:
        await server.start(port=0)

    assert told in str(refused.value)
    assert 'Server(allow_unsafe={"split_state"})' in str(refused.value)
    assert isinstance(refused.value, Misuse)
    assert server.port is None
    assert hooks == []


@pytest.mark.parametrize("name", UNSAFE)
async def test_what_is_allowed_by_name_runs_and_says_so_each_time(name):
    logger = RecordingLogger()
    server = Server(pubsub=Broker(), logger=logger, **UNSAFE[name][0], **ALLOWED)
    for _ in range(2):
        async with server:
            assert await server.hub.broadcast("a", "message", 1) == 0

    assert logger.of("warning") == ["unsafe_configuration"] * 2
    assert logger.fields("unsafe_configuration")["allowed"] == "split_state"


SAFE = {
    "all left out": {},
    "all in memory": {
        "pubsub": MemoryPubSub(),
        "state": MemoryState(),
        "history": MemoryHistory(),
    },
    "all shared": {"pubsub": Broker(), "state": State(), "history": History()},
    "a bus in memory": {"state": State(), "history": History()},
}


@pytest.mark.parametrize("name", SAFE)
async def test_what_goes_together_runs_without_a_word(name):
    logger = RecordingLogger()
    async with Server(logger=logger, **SAFE[name]):
        assert logger.of("warning") == []


async def test_two_servers_on_one_bus_need_the_same_state():
    """While both run, on the same channel."""
    bus, logger = MemoryPubSub(), RecordingLogger()
    one, two = Server(pubsub=bus), Server(pubsub=bus)
    async with one:
        with pytest.raises(UnsafeConfiguration, match="a state of its own"):
            await two.start()
        async with Server(pubsub=bus, cluster_channel="other"):
            """Has nothing to do with the first."""
        async with Server(pubsub=bus, logger=logger, **ALLOWED):
            assert logger.of("warning") == ["unsafe_configuration"]
    async with two:
        assert two.hub.node_id


async def test_two_servers_on_one_bus_that_differ_in_their_history_are_told_of_in_the_log():
    bus, state, logger = MemoryPubSub(), MemoryState(), RecordingLogger()
    async with (
        Server(pubsub=bus, state=state),
        Server(pubsub=bus, state=state, logger=logger),
    ):
        assert logger.of("warning") == ["history_not_shared"]


async def test_it_may_be_allowed_by_setting_and_for_a_provider_of_ones_own():
    def build(settings):
        container = Container(settings=settings)
        container.pubsub.override(providers.Singleton(Broker))
        return container.server()

    with pytest.raises(UnsafeConfiguration):
        await build(Settings()).start(port=None)
    async with build(Settings(server=ServerSettings(allow_unsafe=("split_state",)))) as server:
        assert server.hub.node_id
    read = Settings.load(environ={"EYEWALL_SERVER__ALLOW_UNSAFE": "split_state"})
    assert read.server.allow_unsafe == ("split_state",)


@pytest.mark.parametrize("wrong", ["split_state", ["everything"], [5], 5])
def test_only_what_is_known_can_be_allowed(wrong):
    with pytest.raises(ValueError, match="allow_unsafe"):
        Server(allow_unsafe=wrong)
    with pytest.raises(SettingsError, match="allow_unsafe"):
        ServerSettings(allow_unsafe=["everything"])


async def test_a_server_with_a_bus_of_its_own_is_tested_without_it():
    async with TestHub(Server(pubsub=Broker())) as th:
        assert (await th.connect(user="ada")).label


def test_serve_tells_it_in_one_line(tmp_path):
    (tmp_path / "shop.py").write_text(
        "from eyewall import Server\n"
        "class Bus:\n"
        "    def publish(self, channel, payload): ...\n"
        "    def subscribe(self, channel, handler): ...\n"
        "server = Server(pubsub=Bus())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "eyewall", "serve", "shop:server", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("eyewall: Bus reaches other nodes")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("created_on", ["both nodes", "the other node"])
async def test_a_foreign_epoch_is_counted_and_logged_once(created_on):
    """A message whose position the node's own store does not know."""
    bus, logger = Broker(), RecordingLogger()
    async with AsyncExitStack() as stack:
        here, there = [
            await stack.enter_async_context(
                running(Server(pubsub=bus, logger=log, client_commands=True, **ALLOWED))
            )
            for log in (logger, RecordingLogger())
        ]
        client = await stack.enter_async_context(peer(here))
        for server in (there, *([here] if created_on == "both nodes" else [])):
            await server.hub.create_room("r", RoomOptions(history_size=10))
        await client.join("r")
        for number in range(3):
            await there.hub.broadcast_room("r", "news", "message", number)
            await eventually(
                lambda number=number: (
                    here.hub.stats().foreign_epochs
                    >= (number + 1 if created_on == "both nodes" else 1)
                )
            )

        assert here.hub.stats().foreign_epochs
        assert there.hub.stats().foreign_epochs == 0
        assert logger.of("warning").count("foreign_epoch") == 1
        assert logger.fields("foreign_epoch")["room"] == "r"
