"""What an application registers, before the server runs and while it does."""

import pytest

from eyewall import Routes, Server
from tests.entrypoints.wire import peer, running


def test_every_registration_works_as_a_decorator():
    server = Server()

    @server.on_startup
    @server.on_shutdown
    @server.on("chat:say")
    async def anything(*_):
        """Is handed back as it is."""

    assert callable(anything)
    assert anything.__name__ == "anything"


@pytest.mark.parametrize("pattern", ["", "a*b", "system:join"])
def test_a_pattern_that_cant_be_is_refused_where_it_is_written(pattern):
    with pytest.raises(ValueError):  # noqa: PT011  (each says it in its own words)
        Server().on(pattern)(lambda ctx, msg: None)


async def test_a_group_is_taken_in_under_its_prefix_while_the_server_runs():
    async with running() as server, peer(server) as client:
        routes = Routes()
        routes.handle("ping", lambda ctx, msg: "pong")
        server.include(routes, "echo:")

        answer = await client.request("echo:ping")

    assert answer["result"] == "pong"
