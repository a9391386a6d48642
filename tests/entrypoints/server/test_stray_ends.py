"""What ends tasks and programs, out of the application's code, before a real server's doors."""

import asyncio

import pytest

from eyewall import ConnMeta, Server
from eyewall.testing.logs import RecordingLogger
from tests.entrypoints.wire import eventually, peer, raw_peer, running


class Odd(BaseException):
    """Of a library that thinks itself important."""


ends = pytest.mark.parametrize(
    "end", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, Odd]
)
kinds = pytest.mark.parametrize("kind", ["plain", "async"])


def once(kind, end, then=None):
    """A function that raises when it is first called."""
    calls = []

    def plain(*args):
        calls.append(args)
        if len(calls) == 1:
            raise end
        return then

    async def late(*args):
        await asyncio.sleep(0)
        return plain(*args)

    return plain if kind == "plain" else late


async def status_of(server):
    async with raw_peer(server, upgrade=False) as client:
        return (await client.get(Origin="https://there.example")).status


@ends
@kinds
@pytest.mark.parametrize("door", ["authenticator", "check_origin"])
async def test_of_who_lets_in_it_is_a_500_and_the_next_client_comes_in(door, kind, end):
    then = ConnMeta() if door == "authenticator" else True
    options = {"check_origin": lambda *_: True, door: once(kind, end, then)}
    async with running(**options) as server:
        assert await status_of(server) == 500
        assert await status_of(server) == 101


@ends
async def test_of_a_state_store_a_connection_does_not_stay_open_and_deaf(end):
    async with running() as server:
        presences = server._node.parts.presences
        presences.appear = once("async", end)
        async with raw_peer(server) as client:
            assert (await client.read_frame()).close == (1011, "internal_error")
        async with peer(server):
            """The next one is let in."""


@ends
@kinds
async def test_of_a_startup_hook_the_start_fails_and_may_be_tried_again(kind, end):
    server = Server()
    server.on_startup(once(kind, end))

    with pytest.raises(RuntimeError, match="a startup hook raised"):
        await server.start(port=0)
    await server.start(port=0)
    await server.shutdown()


@ends
@kinds
async def test_of_work_in_the_background_and_shutdown_hooks_it_is_a_log_line(kind, end):
    logger = RecordingLogger()
    server = Server(logger=logger)
    server.background(once(kind, end))
    server.on_shutdown(once(kind, end))
    ended = []
    server.on_shutdown(lambda: ended.append(1))

    async with running(server):
        await eventually(lambda: logger.of("error"))
    assert ended == [1]
    assert logger.of("error") == ["task_failed", "on_shutdown_failed"]
