"""Pages of the application beside the hub, however the server is run."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest
import tornado.web
from tornado.routing import PathMatches, Rule

from eyewall import Server
from eyewall.testing import TestHub
from tests.entrypoints.server.start_page_support import run
from tests.entrypoints.test_cli import PATIENCE, start  # noqa: F401  (a fixture)
from tests.entrypoints.wire import running
from tests.ports import free_port

RUNNING = (Path(__file__).parents[3] / "docs" / "running.md").read_text()


def page(text: str) -> type[tornado.web.RequestHandler]:
    class Page(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write(text)

    return Page


async def body(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_a_server_that_is_started_has_its_pages_in_each_life():
    server = Server(pages=[("/own", page("own")), Rule(PathMatches("/rule"), page("rule"))])
    for _ in range(2):
        await server.start(port=free_port())
        try:
            assert await body(server.port, "/own") == (200, "own")
            assert await body(server.port, "/rule") == (200, "rule")
            assert (await body(server.port, "/eyewall.js"))[0] == 200
        finally:
            await server.shutdown(timeout=1.0)


async def test_the_pages_of_run_come_first_then_the_servers_then_the_start_page():
    server = Server(pages=[("/", page("own")), ("/both", page("own"))])
    with run(server, pages=[("/both", page("run's"))]) as here:
        assert await body(here.port, "/both") == (200, "run's")
        assert await body(here.port, "/") == (200, "own")


async def test_the_pages_of_start_come_before_the_servers():
    server = Server(pages=[("/both", page("own"))])
    await server.start(port=free_port(), pages=[("/both", page("start's"))])
    try:
        assert await body(server.port, "/both") == (200, "start's")
    finally:
        await server.shutdown(timeout=1.0)


async def test_a_list_that_changes_later_changes_no_server():
    pages = [("/own", page("own"))]
    server = Server(pages=pages)
    pages.clear()
    async with running(server) as here:
        assert await body(here.port, "/own") == (200, "own")


async def test_a_server_with_pages_is_tested_as_any_other():
    async with TestHub(Server(pages=[("/own", page("own"))])) as th:
        assert await th.connect(user="ada")


@pytest.fixture
def desk(tmp_path, start):  # noqa: F811
    """The port of the recipe of docs/running.md, which ``eyewall serve`` runs."""
    _, _, recipe = RUNNING.partition("\n## A login and a page beside the hub\n")
    found = re.search(r"```python\n(.*?)```", recipe, re.DOTALL)
    assert found is not None
    (tmp_path / "desk.py").write_text(found[1])
    port = free_port()
    start("desk:server", "--port", str(port), port=port)
    return port


def test_a_login_and_a_page_under_serve(desk):
    def say(method: str, path: str, headers: dict[str, str], **fields: str):
        line = http.client.HTTPConnection("127.0.0.1", desk, timeout=PATIENCE)
        try:
            form = {"Content-Type": "application/x-www-form-urlencoded"} if fields else {}
            line.request(method, path, urlencode(fields) or None, headers | form)
            answer = line.getresponse()
            return answer, answer.read().decode()
        finally:
            line.close()

    assert "/login" in say("GET", "/", {})[1]
    assert say("POST", "/login", {}, name="ada", secret="guessed")[0].status == 403
    answer, _ = say("POST", "/login", {}, name="ada", secret="lovelace")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    kept = answer.headers["Set-Cookie"]
    assert "HttpOnly" in kept
    assert "SameSite=Strict" in kept
    cookie = {"Cookie": kept.partition(";")[0]}
    assert "/eyewall.js" in say("GET", "/", cookie)[1]
    knock = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert say("GET", "/ws", knock)[0].status == 401
    line = http.client.HTTPConnection("127.0.0.1", desk, timeout=PATIENCE)
    try:
        line.request("GET", "/ws", headers=knock | cookie)
        assert line.getresponse().status == 101, "the login's cookie lets in"
    finally:
        line.close()
