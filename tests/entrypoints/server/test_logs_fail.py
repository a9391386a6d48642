"""Logs that can't be written cost their lines, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.exceptions import ConnectionClosed

from eyewall import Server, Unavailable
from eyewall.middleware import log, recover
from tests.application.ports.test_logging import Broken, Shy
from tests.entrypoints.house import by_name
from tests.entrypoints.wire import eventually, peer, raw_peer, running

RAISED = [
    ValueError("I/O operation on closed file"),
    BrokenPipeError(32, "Broken pipe"),
    asyncio.CancelledError(),
    SystemExit(1),
]


@pytest.fixture(params=RAISED, ids=lambda error: type(error).__name__)
def logger(request):
    return Broken(request.param)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), Shy(), Unavailable("no")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("middleware", [None, recover, log])
async def test_a_handler_that_fails_is_answered(logger, error, middleware):
    server = Server(logger=logger)
    if middleware is not None:
        server.use(middleware(logger))

    @server.on("work")
    async def work(ctx, msg):
        raise error

    @server.on("fine")
    async def fine(ctx, msg):
        return {"n": 1}

    async with running(server), peer(server) as client:
        refused = await client.refused("work")
        assert refused["code"] == ("unavailable" if isinstance(error, Unavailable) else "internal")
        assert (await client.request("fine"))["n"] == 1


@pytest.mark.parametrize("error", [RuntimeError("no"), Shy()], ids=["RuntimeError", "Shy"])
async def test_an_authenticator_that_fails_is_answered_with_500(logger, error):
    def fail(handshake):
        raise error

    async with (
        running(authenticator=fail, logger=logger) as server,
        raw_peer(server, upgrade=False) as client,
    ):
        assert (await client.get()).status == 500


async def test_an_origin_check_that_fails_is_answered_with_500(logger):
    async with (
        running(check_origin=lambda origin, handshake: 1 / 0, logger=logger) as server,
        raw_peer(server, upgrade=False) as client,
    ):
        assert (await client.get(Origin="https://a.example")).status == 500


@pytest.mark.parametrize("event", ["on_connect", "on_message", "on_error", "on_disconnect"])
async def test_a_hook_that_fails_harms_nobody_else(logger, event):
    server = Server(logger=logger, authenticator=by_name)

    @server.on("echo")
    async def echo(ctx, msg):
        if ctx.user_id == "eve":
            raise RuntimeError("no")
        return {"n": msg.data}

    def fail(conn, *_):
        if conn.user_id == "eve":
            raise Shy

    getattr(server.hub, event)(fail)
    async with running(server), peer(server, query="?name=ada") as ada:
        with contextlib.suppress(ConnectionClosed):
            async with peer(server, query="?name=eve") as eve:
                assert (await eve.refused("echo"))["code"] == "internal"
        await eventually(lambda: server.hub.users() == ["ada"])

        assert (await ada.request("echo", 1))["n"] == 1
