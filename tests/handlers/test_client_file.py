"""The JavaScript client over HTTP, in an application that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest
from tornado.web import Application

from eyewall import Server
from eyewall.browser import client_routes

SOURCE = Path(__file__).parents[2] / "clients" / "js" / "eyewall.js"
PATH = "/static/eyewall.js"


@pytest.fixture
def app() -> Application:
    return Application([*Server().routes("/ws"), *client_routes(PATH)])


@pytest.mark.gen_test
async def test_it_is_served_as_a_module(fetch):
    answer = await fetch(PATH)

    assert (answer.code, answer.body) == (200, SOURCE.read_bytes())
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.gen_test
async def test_its_length_is_known_without_it(fetch):
    answer = await fetch(PATH, method="HEAD")

    assert (answer.code, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == SOURCE.stat().st_size


@pytest.mark.gen_test
async def test_it_is_sent_again_only_when_it_has_changed(fetch):
    first = await fetch(PATH)
    assert first.headers["Cache-Control"] == "no-cache"

    same = await fetch(PATH, headers={"If-None-Match": first.headers["ETag"]})
    other = await fetch(PATH, headers={"If-None-Match": '"old"'})

    assert (same.code, other.code) == (304, 200)


@pytest.mark.gen_test
async def test_pages_of_other_origins_may_load_it(fetch):
    answer = await fetch(PATH, headers={"Origin": "https://shop.example"})

    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("path", ["/eyewall.js", "/static/eyewall_js", "/static/eyewall.d.ts"])
@pytest.mark.gen_test
async def test_nothing_else_of_it_is_served(fetch, path):
    assert (await fetch(path)).code == 404
