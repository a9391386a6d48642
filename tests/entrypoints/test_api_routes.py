"""api.md, "Server": routes in an application that is there already, and groups of them."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application, RequestHandler

from eyewall import Context, Envelope, Routes, Server
from tests.entrypoints.wire import (
    peer,
    running,
)


async def pong(ctx: Context, msg: Envelope) -> dict:
    return {"pong": msg.data}


# --- Tornado routes for an application that is there already


class Hello(RequestHandler):
    def get(self) -> None:
        self.write("hello")


async def test_routes_stand_in_a_users_own_application():
    server = Server()
    server.handle("pong", pong)
    application = Application([(r"/hello", Hello), *server.routes("/live")])
    http = application.listen(0, "127.0.0.1")
    port = next(iter(http._sockets.values())).getsockname()[1]
    await server.start()
    try:
        async with peer(f"ws://127.0.0.1:{port}/live") as client:
            assert (await client.request("pong", 1))["pong"] == 1
            page = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/hello")
            assert page.body == b"hello"
    finally:
        await server.shutdown(timeout=1)
        http.stop()
        await http.close_all_connections()


async def test_routes_stand_at_ws_unless_told_otherwise():
    server = Server()
    http = Application(server.routes()).listen(0, "127.0.0.1")
    port = next(iter(http._sockets.values())).getsockname()[1]
    async with server, peer(f"ws://127.0.0.1:{port}/ws") as client:
        assert client.welcome is not None
    http.stop()
    await http.close_all_connections()


async def test_other_paths_are_not_found():
    async with running() as server:
        parts = urlsplit(server.url)
        answer = await AsyncHTTPClient().fetch(f"http://{parts.netloc}/nowhere", raise_error=False)

        assert answer.code == 404


# --- groups of routes


async def test_a_group_of_routes_is_taken_in_under_a_prefix():
    routes = Routes()
    seen = []

    async def mark(ctx, msg, next):
        seen.append(msg.topic)
        return await next(ctx, msg)

    routes.use(mark)

    @routes.on("say")
    async def say(ctx, msg):
        return {"said": msg.data}

    routes.handle("*", pong)
    server = Server()
    server.handle("outside", pong)
    server.include(routes, prefix="chat:")
    async with running(server), peer(server) as client:
        assert (await client.request("chat:say", 1))["said"] == 1
        assert (await client.request("chat:other", 2))["pong"] == 2
        assert (await client.refused("say"))["code"] == "handler_not_found"
        await client.request("outside")

    assert seen == ["chat:say", "chat:other"], "its middleware is for its own routes"


async def test_a_group_without_a_prefix_stands_as_it_is():
    routes = Routes()
    routes.handle("say", pong)
    server = Server()
    server.include(routes)
    async with running(server), peer(server) as client:
        assert (await client.request("say", 1))["pong"] == 1


async def test_a_group_may_be_taken_in_twice():
    routes = Routes()
    routes.handle("say", pong)
    server = Server()
    server.include(routes, prefix="a:")
    server.include(routes, prefix="b:")
    async with running(server), peer(server) as client:
        assert (await client.request("a:say", 1))["pong"] == 1
        assert (await client.request("b:say", 2))["pong"] == 2


async def test_routes_middleware_and_hooks_may_be_added_while_it_runs():
    """They apply from the next message on."""
    server = Server()
    seen = []
    async with running(server), peer(server) as client:
        assert (await client.refused("late"))["code"] == "handler_not_found"
        server.handle("late", pong)
        assert (await client.request("late", 1))["pong"] == 1

        async def mark(ctx, msg, next):
            seen.append(msg.topic)
            return await next(ctx, msg)

        server.use(mark)
        await client.request("late", 2)
        server.hub.on_message(lambda conn, raw: seen.append("raw"))
        await client.request("late", 3)

    assert seen == ["late", "raw", "late"]


async def test_the_hub_takes_routes_and_middleware_too():
    server = Server()
    seen = []

    async def mark(ctx, msg, next):
        seen.append(msg.topic)
        return await next(ctx, msg)

    server.hub.handle("a", pong, mark)
    server.hub.handle("v", pong, version="v2")
    server.hub.use(mark)
    async with running(server), peer(server) as client:
        await client.request("a", 1)
        await client.request("v", 1, version="v2")
        assert (await client.refused("v", 1))["code"] == "handler_not_found"

    assert seen[:3] == ["a", "a", "v"]


@pytest.mark.parametrize("pattern", ["", "a*", "*a", "a:*:b", "a:**", "t" * 257])
def test_a_pattern_has_a_wildcard_only_at_the_end(pattern):
    with pytest.raises(ValueError, match=r"\*|pattern"):
        Server().handle(pattern, pong)
