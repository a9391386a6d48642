"""The JavaScript client over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from eyewall import Server

SOURCE = Path(__file__).parents[2] / "clients" / "js" / "eyewall.js"


@pytest.fixture
async def get() -> AsyncIterator:
    """Asks a server that listens itself."""
    server = Server()
    await server.start(port=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session.get
    await server.shutdown(1)


async def test_a_server_serves_its_client_as_a_module(get):
    async with get("/eyewall.js") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert await response.read() == SOURCE.read_bytes()


async def test_it_is_sent_again_only_when_it_has_changed(get):
    async with get("/eyewall.js") as first:
        assert first.headers["Cache-Control"] == "no-cache"
        tag = first.headers["ETag"]

    async with get("/eyewall.js", headers={"If-None-Match": tag}) as second:
        assert second.status == 304
    async with get("/eyewall.js", headers={"If-None-Match": '"old"'}) as third:
        assert third.status == 200


async def test_pages_of_other_origins_may_load_it(get):
    async with get("/eyewall.js", headers={"Origin": "https://shop.example"}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("path", ["/eyewall_js", "/eyewall.d.ts", "/package.json"])
async def test_nothing_else_of_it_is_served(get, path):
    async with get(path) as response:
        assert response.status == 404
