"""What an application registers, before the server runs and while it does."""

import pytest

from eyewall import Routes, Server, Unavailable
from eyewall.server.assemble import assemble
from eyewall.server.server import rebuilt, registry_of
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


async def test_who_stands_in_gets_what_is_asked_of_the_server_and_its_hub():
    """The last one of several; afterwards it is the server's own again."""
    server, first, last = Server(), Server(), Server()
    registry_of(server).override(registry_of(first).runtime)
    registry_of(server).override(registry_of(last).runtime)

    assert server.hub.node_id == last.hub.node_id
    registry_of(server).restore(registry_of(first).runtime)
    assert server.hub.node_id == last.hub.node_id
    server.handle("echo", lambda ctx, msg: None)
    assert registry_of(last).runtime.node.parts.router.find("echo", None) is not None
    async with last:
        await server.hub.shutdown()
        with pytest.raises(Unavailable):
            registry_of(last).runtime.node.ports.pubsub.subscribe("any", lambda _: None)

    registry_of(server).restore(registry_of(last).runtime)
    assert server.hub.node_id == registry_of(server).runtime.node.config.node_id
    assert registry_of(server).runtime.node.parts.router.find("echo", None) is None


async def test_a_server_can_be_rebuilt_with_what_is_registered():
    ran = []
    server = Server(node_id="here")
    server.on_startup(lambda: ran.append("startup"))
    server.on_shutdown(lambda: ran.append("shutdown"))
    server.background(lambda: ran.append("background"))
    server.handle("echo", lambda ctx, msg: None)

    for _ in range(2):
        async with rebuilt(server, assemble) as other:
            assert other.hub.node_id == "here"
            assert registry_of(other).runtime.node.parts.router.find("echo", None) is not None
            assert registry_of(other).runtime.node is not registry_of(server).runtime.node

    assert ran == ["startup", "background", "shutdown"] * 2
