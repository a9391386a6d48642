"""The page of a server that was just begun: shown to who is at the machine, and to no other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import tornado.web
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from eyewall import Server, Settings, SettingsError
from eyewall.server.start_page import is_local
from eyewall.settings.groups import ServerSettings
from eyewall.version import VERSION
from tests.entrypoints.server.start_page_support import echoing, run
from tests.entrypoints.wire import running


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with run(echoing()) as here:
        yield here.port


async def ask(
    port: int, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, str, Any]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}", headers=names) as answer,
    ):
        return answer.status, await answer.text(), answer.headers


async def test_it_says_what_runs_and_where(port):
    status, text, headers = await ask(port)

    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert f"eyewall {VERSION}" in text
    assert f"ws://127.0.0.1:{port}/ws" in text
    assert "{{" not in text


async def test_nothing_on_it_comes_from_elsewhere_or_is_made_up_on_the_way(port):
    """What may run is told by its hash, and its socket is the server's own."""
    _, text, headers = await ask(port)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))

    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert re.fullmatch(r"'sha256-[^ ']+'", policy["script-src"])
    assert re.fullmatch(r"'sha256-[^ ']+'", policy["style-src"])
    assert policy["connect-src"] == f"'self' ws://127.0.0.1:{port}"
    assert not re.search(r"\son\w+\s*=", text), "no handlers in attributes"
    assert "http://" not in text
    assert headers["Cache-Control"] == "no-store"


async def test_head_is_answered_too(port):
    assert (await ask(port, method="HEAD"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "203.0.113.7"},
        {"X_Forwarded_Proto": "https"},
        {"x_forwarded_anything": "a"},
        {"Forwarded": "for=203.0.113.7"},
        {"X_Real_IP": "203.0.113.7"},
        {"Via": "1.1 proxy"},
        {"X_Forwarded": "203.0.113.7"},
        {"X_Original_Forwarded_For": "203.0.113.7"},
        {"CF_Connecting_IP": "203.0.113.7"},
        {"True_Client_IP": "203.0.113.7"},
        {"X_Client_IP": "203.0.113.7"},
        {"CDN_Loop": "a"},
        {"Connection": "upgrade"},
        {"Host": "live.example.com"},
        {"Host": "203.0.113.7"},
        {"Host": "localhost.example.com"},
        {"Host": "[2001:db8::1]:8080"},
        {"Upgrade": "websocket", "Connection": "Upgrade"},
    ],
    ids=str,
)
async def test_what_may_come_through_a_proxy_finds_nothing(port, headers):
    """The answer is that of any path where nothing is."""
    nothing = await ask(port, "/nothing", **headers)

    assert nothing[0] == 404
    assert (await ask(port, **headers))[:2] == nothing[:2]


@pytest.mark.parametrize("host", ["localhost", "app.localhost:8080", "127.0.0.9", "[::1]:80"])
async def test_every_name_of_the_own_machine_will_do(port, host):
    status, text, _ = await ask(port, Host=host)

    assert status == 200
    assert f"ws://{host}/ws" in text


async def test_a_policy_names_no_ipv6_address(port):
    """It can't, and a browser complains of one that does; the own socket is meant by 'self'."""
    _, _, headers = await ask(port, Host=f"[::1]:{port}")

    assert "connect-src 'self';" in headers["Content-Security-Policy"]


async def test_a_proxy_of_the_old_protocol_finds_nothing(port):
    """As nginx speaks it to what is behind it, unless it is told otherwise."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
    answer = await reader.read()
    writer.close()

    assert b" 404 " in answer.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("192.0.2.1", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("/run/eyewall.sock", False),
    ],
)
def test_only_this_machine_is_local(peer, shown):
    class Context:
        remote_ip, protocol = peer, "http"

    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "localhost"}),
        connection=type("Connection", (), {"context": Context})(),
    )

    assert is_local(request) is shown


@pytest.mark.parametrize("path", ["/index.html", "//", "/ws/"])
async def test_it_stands_at_one_place_only(port, path):
    assert (await ask(port, path))[0] == 404


async def test_it_takes_nothing_in(port):
    assert (await ask(port, method="POST"))[0] == 404


async def test_a_server_that_is_started_has_none():
    async with running(echoing()) as server:
        assert (await ask(server.port))[0] == 404


@pytest.mark.parametrize(
    "server",
    [
        lambda: Server(start_page=False),
        lambda: Server.from_settings(Settings(server=ServerSettings(start_page=False))),
        lambda: Server.from_settings(Settings.load(environ={"EYEWALL_SERVER__START_PAGE": "off"})),
    ],
    ids=["keyword", "settings", "environment"],
)
async def test_it_can_be_taken_away(server):
    with run(server()) as here:
        assert (await ask(here.port))[0] == 404


def test_a_setting_that_is_neither_on_nor_off_is_told():
    with pytest.raises(SettingsError, match=r"server\.start_page"):
        Settings.load(environ={"EYEWALL_SERVER__START_PAGE": "maybe"})


async def test_a_page_of_the_application_stands_before_it():
    class Home(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write("ours")

    with run(echoing(), pages=[("/", Home)]) as here:
        assert (await ask(here.port))[1] == "ours"
