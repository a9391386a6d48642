"""Where a server listens: as it is told, or as the settings say that it was built from."""

from __future__ import annotations

import pytest

from eyewall import Server, Settings
from eyewall.container import Container
from eyewall.settings.groups import ServerSettings, SettingsError, TlsSettings
from eyewall.testing import TestHub
from tests.certificate import certificate, tls_contexts
from tests.entrypoints.wire import UNIT, free_port, peer

BUILT = {
    "from_settings": Server.from_settings,
    "container": lambda settings: Container(settings=settings).server(),
}


@pytest.fixture
def settings():
    """Host, port and TLS that are not the defaults."""
    pem = str(certificate())
    return Settings(
        server=ServerSettings(host="localhost", port=free_port()),
        tls=TlsSettings(cert=pem, key=pem),
    )


@pytest.mark.parametrize("built", BUILT)
async def test_start_of_a_server_from_settings_listens_as_they_say(built, settings):
    """In each of its lives."""
    server = BUILT[built](settings)
    for _ in range(2):
        await server.start()
        try:
            assert server.url == f"wss://localhost:{settings.server.port}/ws"
            async with peer(server):
                pass
        finally:
            await server.shutdown(timeout=UNIT)


@pytest.mark.parametrize("built", BUILT)
def test_run_of_a_server_from_settings_listens_as_they_say(built, settings):
    server, urls = BUILT[built](settings), []

    @server.background
    async def visit():
        async with peer(server):
            urls.append(server.url)
        server.background(server.shutdown)

    server.run()

    assert urls == [f"wss://localhost:{settings.server.port}/ws"]


async def test_what_is_given_counts_more_than_the_settings(settings):
    server, port = Server.from_settings(settings), free_port()
    ways = {
        f"wss://localhost:{port}/ws": {"port": port},
        f"wss://127.0.0.1:{settings.server.port}/ws": {"host": "127.0.0.1"},
        f"ws://localhost:{settings.server.port}/ws": {"ssl": None},
        f"wss://127.0.0.1:{port}/ws": {"host": "127.0.0.1", "port": port, "ssl": tls_contexts()[0]},
    }
    for url, given in ways.items():
        await server.start(**given)
        try:
            assert server.url == url
            async with peer(server):
                pass
        finally:
            await server.shutdown(timeout=UNIT)


async def test_what_runs_beside_other_sockets_does_not_listen(settings):
    """``async with``, ``port=None``, routes in an application, and the test kit."""
    server = Server.from_settings(settings)
    async with server:
        assert server.port is None
    await server.start(port=None)
    assert server.port is None
    await server.shutdown(timeout=UNIT)
    async with TestHub(server) as th:
        assert th.hub.connection_ids() == []

    assert server.routes("/ws")
    await server.start()
    assert server.port is None
    await server.shutdown(timeout=UNIT)
    await server.start(port=0)
    assert server.port
    await server.shutdown(timeout=UNIT)


async def test_files_that_are_of_no_use_for_tls_stop_the_start(settings, tmp_path):
    """In plain text it must not listen; and when they are in order, it can be started."""
    pem = tmp_path / "one.pem"
    pem.write_text("nonsense")
    broken = TlsSettings(cert=str(pem), key=str(pem))
    server = Server.from_settings(Settings(server=settings.server, tls=broken))
    with pytest.raises(SettingsError, match=r"tls\.cert and tls\.key can't be used"):
        await server.start()
    assert server.port is None

    pem.write_bytes(certificate().read_bytes())
    await server.start()
    assert server.url.startswith("wss:")
    await server.shutdown(timeout=UNIT)


def test_a_plain_run_listens_on_this_machine():
    server, urls = Server(), []
    server.on_startup(lambda: urls.append(server.url))
    server.background(server.shutdown)

    server.run(port=free_port())
    server.run(host="localhost", port=0)

    assert [url.rpartition(":")[0] for url in urls] == ["ws://127.0.0.1", "ws://localhost"]
