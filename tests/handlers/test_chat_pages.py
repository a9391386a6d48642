"""The chat's page and its files over HTTP."""

from __future__ import annotations

import re

import pytest
from tornado.web import Application

from eyewall.chat.pages import STATIC, pages

FILES = sorted(path.name for path in STATIC.iterdir())
KINDS = {"js": "javascript", "css": "text/css", "svg": "image/svg+xml"}


@pytest.fixture
def app() -> Application:
    return Application(pages())


@pytest.mark.gen_test
async def test_the_index_stands_at_the_root(fetch):
    answer = await fetch("/")

    assert answer.code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<title>eyewall</title>" in answer.body.decode()


@pytest.mark.parametrize("name", [name for name in FILES if name != "index.html"])
@pytest.mark.gen_test
async def test_its_files_stand_beside_it(fetch, name):
    answer = await fetch(f"/{name}")

    assert (answer.code, answer.body) == (200, (STATIC / name).read_bytes())
    assert KINDS[name.rpartition(".")[2]] in answer.headers["Content-Type"]


@pytest.mark.gen_test
async def test_the_client_that_it_speaks_through_stands_there_too(fetch):
    """There is one implementation of the protocol in JavaScript, and the page has none."""
    assert (await fetch("/eyewall.js")).code == 200

    texts = [path.read_text() for path in STATIC.glob("*.js")]
    assert any('from "./eyewall.js"' in text for text in texts)
    assert not any("WebSocket(" in text for text in texts)


@pytest.mark.gen_test
async def test_the_page_may_load_and_reach_its_own_server_only(fetch):
    answer = await fetch("/")
    policy = answer.headers["Content-Security-Policy"].split("; ")

    assert {"default-src 'self'", "connect-src 'self' ws: wss:"} <= set(policy)
    assert "unsafe" not in " ".join(policy)
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.gen_test
async def test_a_file_that_did_not_change_is_not_sent_again(fetch):
    first = await fetch("/chat.js")
    assert first.headers["Cache-Control"] == "no-cache"

    second = await fetch("/chat.js", headers={"If-None-Match": first.headers["ETag"]})

    assert (second.code, second.body) == (304, b"")


@pytest.mark.parametrize("path", ["/nothing.js", "/index.htm", "/../pages.py", "/static/chat.js"])
@pytest.mark.gen_test
async def test_nothing_else_is_there(fetch, path):
    assert (await fetch(path)).code == 404


@pytest.mark.parametrize("name", FILES)
def test_the_page_needs_no_other_server(name):
    """It has no fonts, scripts or pictures from elsewhere; what people wrote is never HTML."""
    text = (STATIC / name).read_text()

    links = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
    assert not links
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
