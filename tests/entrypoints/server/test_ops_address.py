"""The ops address: health and metrics apart from the clients' port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from eyewall import Server, Settings
from eyewall.adapters.observe.prometheus import PrometheusMetrics
from eyewall.cli import main
from eyewall.settings.groups import OpsSettings
from eyewall.settings.settings import SettingsError
from eyewall.testing import TestHub
from eyewall.testing.logs import RecordingLogger
from tests.certificate import tls_contexts
from tests.entrypoints.wire import UNIT, free_port, peer, soon

PATHS = ("/healthz", "/readyz", "/metrics")


async def get(port, path, host=None, scheme="http", **options):
    """The status of an answer, and its text."""
    headers = {} if host is None else {"Host": host}
    url = f"{scheme}://127.0.0.1:{port}{path}"
    client = AsyncHTTPClient(force_instance=True)
    try:
        answer = await soon(client.fetch(url, raise_error=False, headers=headers, **options))
    finally:
        client.close()
    return answer.code, answer.body.decode()


async def statuses(port, *paths, **options):
    return [(await get(port, path, **options))[0] for path in paths]


@contextlib.asynccontextmanager
async def serving(server, **where):
    where.setdefault("port", 0)
    await server.start(**where)
    try:
        yield server
    finally:
        await server.shutdown(timeout=UNIT)


def watched(**options):
    return Server(metrics=PrometheusMetrics(), **options)


# --- where it is


async def test_without_one_they_are_where_the_clients_are():
    async with serving(watched()) as server:
        assert await statuses(server.port, *PATHS) == [200, 200, 200]
        assert server.ops_port is None


async def test_with_one_they_are_there_and_nowhere_else():
    async with serving(watched(ops_port=0)) as server:
        assert server.ops_port not in (None, 0, server.port)
        assert await statuses(server.ops_port, *PATHS) == [200, 200, 200]
        assert await statuses(server.port, *PATHS) == [404, 404, 404]
        assert await statuses(server.ops_port, "/", "/ws", "/eyewall.js") == [404, 404, 404]
        async with peer(server):
            assert "eyewall_connections 1.0" in (await get(server.ops_port, "/metrics"))[1]
    assert server.ops_port is None


async def test_a_server_without_metrics_has_no_such_page_there_either():
    async with serving(Server(ops_port=0)) as server:
        assert await statuses(server.ops_port, *PATHS) == [200, 200, 404]


async def test_it_listens_on_this_machine_only_unless_it_is_told_more():
    log = RecordingLogger()
    async with serving(Server(ops_port=0, logger=log)) as server:
        addresses = log.fields("ops_listening")["addresses"]
        assert addresses == [f"127.0.0.1:{server.ops_port}"]
    log = RecordingLogger()
    async with serving(Server(ops_port=0, ops_host="localhost,127.0.0.2", logger=log)) as server:
        assert f"127.0.0.2:{server.ops_port}" in log.fields("ops_listening")["addresses"]


async def test_a_server_in_an_application_has_one_as_well():
    """Its own routes are the socket's only, and ``start`` listens nowhere else."""
    server = watched(ops_port=0)
    sock, port = bind_unused_port()
    http = HTTPServer(Application(server.routes("/ws")))
    http.add_sockets([sock])
    try:
        async with server:
            assert server.port is None
            assert await statuses(server.ops_port, *PATHS) == [200, 200, 200]
            assert await statuses(port, *PATHS) == [404, 404, 404]
    finally:
        http.stop()
        await http.close_all_connections()


async def test_a_server_has_it_in_each_of_its_lives():
    server = watched(ops_port=free_port())
    for _ in range(2):
        async with serving(server):
            assert server.ops_port == server.options.ops_port
            assert await statuses(server.ops_port, *PATHS) == [200, 200, 200]


async def test_a_server_under_test_listens_nowhere():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        server = Server(ops_port=taken.getsockname()[1])
        async with TestHub(server):
            assert server.ops_port is None


# --- when it is there


async def test_it_is_there_before_anybody_is_let_in():
    server, begun, go_on = Server(ops_port=0), asyncio.Event(), asyncio.Event()

    @server.on_startup
    async def warm_up():
        begun.set()
        await go_on.wait()

    starting = asyncio.ensure_future(server.start(port=0))
    await soon(begun.wait())
    try:
        assert await statuses(server.ops_port, "/healthz") == [200]
        status, text = await get(server.ops_port, "/readyz")
        assert (status, json.loads(text)["reasons"]) == (503, ["starting"])
        go_on.set()
        await soon(starting)
        assert await statuses(server.ops_port, "/readyz") == [200]
    finally:
        await server.shutdown(timeout=UNIT)


async def test_while_the_server_drains_it_says_so_to_the_end():
    server, begun, go_on = watched(ops_port=0), asyncio.Event(), asyncio.Event()
    at_the_end = []

    @server.on("work")
    async def work(ctx, msg):
        begun.set()
        await go_on.wait()

    @server.on_shutdown
    async def look():
        at_the_end.append(await get(server.ops_port, "/readyz"))
        at_the_end.append(await get(server.ops_port, "/metrics"))

    async with serving(server), peer(server) as client:
        await client.send("work")
        await begun.wait()
        stopping = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
        await client.expect("system:draining", "draining")

        status, text = await get(server.ops_port, "/readyz")
        assert (status, json.loads(text)["reasons"]) == (503, ["draining"])
        assert await statuses(server.ops_port, "/healthz", "/metrics") == [200, 200]
        port = server.ops_port
        go_on.set()
        await stopping
    assert [status for status, _ in at_the_end] == [503, 200]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_a_start_that_fails_leaves_nothing_behind():
    server, port = Server(ops_port=free_port()), free_port()
    fail = True

    @server.on_startup
    async def check():
        if fail:
            raise LookupError

    with pytest.raises(LookupError):
        await server.start(port=port)
    fail = False
    async with serving(server, port=port):
        assert await statuses(server.ops_port, "/readyz") == [200]


# --- what it lets through


async def test_it_answers_for_every_host():
    """Monitors go by addresses, which change."""
    async with serving(watched(ops_port=0, allowed_hosts=["app.example"])) as server:
        assert await statuses(server.ops_port, *PATHS, host="10.1.2.3:9100") == [200, 200, 200]
        assert await statuses(server.port, "/", host="10.1.2.3:9100") == [403]


async def test_it_speaks_plain_http_beside_clients_with_tls():
    async with serving(watched(ops_port=0), ssl=tls_contexts()[0]) as server:
        assert await statuses(server.ops_port, *PATHS) == [200, 200, 200]
        assert server.url.startswith("wss:")


async def test_a_request_that_does_not_come_to_its_end_is_cut():
    """It is no handshake, and counts among none."""
    log = RecordingLogger()
    async with serving(Server(ops_port=0, handshake_timeout=0.1, logger=log)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ops_port)
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        assert await soon(reader.read()) == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ops_port)
        writer.write(b"no request\r\n\r\n")
        assert (await soon(reader.read())).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert server.hub.stats().refused == {}
        assert "handshake_refused" not in [event for _, event, _ in log.entries]


# --- how it is said


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"ops_port": -1}, "ops_port must be None or a whole number from 0 to 65535, not -1"),
        ({"ops_port": 65536}, "ops_port must be None or a whole number"),
        ({"ops_port": True}, "ops_port must be None or a whole number"),
        ({"ops_port": "9100"}, "ops_port must be None or a whole number"),
        ({"ops_port": 9100, "ops_host": None}, "ops_host must be a string, not None"),
        ({"ops_host": "10.0.0.5"}, "ops_host needs ops_port beside it"),
    ],
)
def test_a_wrong_address_is_told_where_the_server_is_built(wrong, text):
    with pytest.raises(ValueError, match=text):
        Server(**wrong)


async def test_it_can_be_set_from_outside():
    assert Settings().ops == OpsSettings(host="127.0.0.1", port=None)
    environ = {"EYEWALL_OPS__PORT": "0", "EYEWALL_OPS__HOST": "localhost"}
    settings = Settings.load(environ=environ)
    assert settings.ops == OpsSettings(host="localhost", port=0)
    assert 'ops.host = "localhost"\nops.port = 0' in settings.describe()
    async with serving(Server.from_settings(settings)) as server:
        assert await statuses(server.ops_port, "/healthz", "/readyz") == [200, 200]
        assert await statuses(server.port, "/healthz") == [404]
    off = Settings.load(environ={"EYEWALL_OPS__PORT": "off"})
    assert Server.from_settings(off).options.ops_port is None


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("EYEWALL_OPS__PORT", "70000", "ops.port: expected a whole number from 0 to 65535"),
        ("EYEWALL_OPS__PORT", "http", "ops.port: expected a whole number from 0 to 65535"),
        ("EYEWALL_OPS__HOST", "0.0.0.0", "ops.host: needs ops.port beside it"),
    ],
)
def test_a_wrong_setting_is_told_by_its_key(variable, text, told):
    with pytest.raises(SettingsError, match=told):
        Settings.load(environ={variable: text})


async def test_a_taken_port_is_told_and_the_other_one_is_given_back():
    port = free_port()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        server = Server(ops_port=taken.getsockname()[1])
        with pytest.raises(OSError, match=r"^the ops address 127.0.0.1:\d+: .*in use") as told:
            await server.start(port=port)
        assert (server.port, server.ops_port) == (None, None)
    async with serving(server, port=port):
        assert await statuses(server.ops_port, "/healthz") == [200]
    assert told.value.errno == errno.EADDRINUSE  # kept so far, with all that it refers to


@pytest.mark.parametrize("way", ["run", "serve"])
def test_a_taken_port_is_told_in_a_sentence_where_a_program_is_run(
    way, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        if way == "run":
            with pytest.raises(SystemExit) as ended:
                Server(ops_port=port).run(port=0)
            status, option = ended.value.code, "ops_port="
        else:
            monkeypatch.setenv("EYEWALL_OPS__PORT", str(port))
            status, option = main(["serve", "--port", "0"]), "ops.port"

    assert status == 1
    assert capsys.readouterr().err == (
        f"eyewall: the ops address is not available: port {port} on 127.0.0.1 is in use; "
        f"take another with {option}\n"
    )


@pytest.mark.parametrize("way", ["run", "settings"])
def test_the_port_of_the_clients_is_not_its_own(way, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    if way == "run":
        with pytest.raises(SystemExit):
            Server(ops_port=port).run(port=port)
        told = f"127.0.0.1:{port} is the clients' address; take another with ops_port="
    else:
        monkeypatch.setenv("EYEWALL_OPS__PORT", str(port))
        assert main(["serve", "--port", str(port)]) == 2
        told = f"ops.port: {port} is the clients' address (server.port); take another"
    assert told in capsys.readouterr().err


def test_check_config_shows_it_and_tells_what_is_wrong(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eyewall.toml").write_text("[ops]\nport = 9100\n")
    assert main(["check-config"]) == 0
    assert 'ops.host = "127.0.0.1"\nops.port = 9100\n' in capsys.readouterr().out
    (tmp_path / "eyewall.toml").write_text('[ops]\nhost = "*"\n')
    assert main(["check-config"]) == 2
    assert "ops.host: needs ops.port beside it (eyewall.toml)" in capsys.readouterr().err
