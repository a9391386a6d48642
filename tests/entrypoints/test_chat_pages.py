from __future__ import annotations

import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from eyewall.chat.pages import STATIC, pages

FILES = sorted(path.name for path in STATIC.iterdir())


@pytest.fixture
async def get() -> AsyncIterator:
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application(pages()))
    server.add_sockets(sockets)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{sockets[0].getsockname()[1]}") as session:
        yield session.get
    server.stop()
    await server.close_all_connections()


async def test_the_index_stands_at_the_root(get):
    async with get("/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        assert "<title>eyewall</title>" in await response.text()


@pytest.mark.parametrize("name", [name for name in FILES if name != "index.html"])
async def test_its_files_stand_beside_it(get, name):
    kinds = {"js": "javascript", "css": "text/css", "svg": "image/svg+xml"}

    async with get(f"/{name}") as response:
        assert response.status == 200
        assert kinds[name.rpartition(".")[2]] in response.content_type


async def test_the_client_that_it_speaks_through_stands_there_too(get):
    """There is one implementation of the protocol in JavaScript, and the page has none."""
    async with get("/eyewall.js") as response:
        assert response.status == 200
    texts = [path.read_text() for path in STATIC.glob("*.js")]
    assert any('from "./eyewall.js"' in text for text in texts)
    assert not any("WebSocket(" in text for text in texts)


async def test_the_page_may_load_and_reach_its_own_server_only(get):
    async with get("/") as response:
        policy = response.headers["Content-Security-Policy"].split("; ")

    assert {"default-src 'self'", "connect-src 'self' ws: wss:"} <= set(policy)
    assert "unsafe" not in " ".join(policy)


async def test_a_file_that_did_not_change_is_not_sent_again(get):
    async with get("/chat.js") as first:
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "no-cache"

    async with get("/chat.js", headers={"If-None-Match": tag}) as second:
        assert second.status == 304


@pytest.mark.parametrize("path", ["/nothing.js", "/index.htm", "/../pages.py", "/static/chat.js"])
async def test_nothing_else_is_there(get, path):
    async with get(path) as response:
        assert response.status == 404


@pytest.mark.parametrize("name", FILES)
def test_the_page_needs_nobody_else(name):
    """No fonts, scripts or pictures of others; and nothing people wrote is taken as HTML."""
    text = (STATIC / name).read_text()

    links = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
    assert not links
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
