"""Clients that nobody here wrote read everything that was sent before a close, and its code.

Many of them drop what they have not handled yet when they find the end of the TCP
connection. So the server may close it only when they have answered (RFC 6455, 7.1.1).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright

from tests.certificate import certificate
from tests.entrypoints.chat_support import CHROMIUM_FLAGS, chromium_path
from tests.libraries.python_clients import by_aiohttp, by_tornado, by_websockets
from tests.libraries.servers import (
    CLOSED,
    MESSAGES,
    PATIENCE,
    Found,
    Way,
    need,
    program,
    ways,
)

HERE = Path(__file__).parent

NODE_MODULES = Path(sys.prefix) / "npm" / "node_modules"
"""Where ``make`` has npm put the libraries."""


@pytest.fixture
async def all_ways(tmp_path) -> AsyncIterator[list[Way]]:
    async with ways(tmp_path) as found:
        yield found


def check(ways: Sequence[Way], found: Sequence[Found], *, deflates: bool = True) -> None:
    """Every message and the code has come, compressed where that was agreed on."""
    summaries = {way.name: one.summary() for way, one in zip(ways, found, strict=True)}
    assert summaries == {way.name: (MESSAGES, CLOSED) for way in ways}
    compressed = {
        way.name: one.compressed
        for way, one in zip(ways, found, strict=True)
        if one.compressed is not None
    }
    assert compressed == {way.name: way.deflate and deflates for way in ways if compressed}


@pytest.mark.parametrize("client", [by_websockets, by_aiohttp, by_tornado])
async def test_libraries_of_python(all_ways, client):
    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*(client(way) for way in all_ways))

    check(all_ways, found)


@pytest.mark.parametrize("library", ["builtin", "ws", "faye-websocket", "websocket"])
async def test_libraries_of_node(all_ways, library):
    node = program("node", "nodejs")
    if library != "builtin":
        need(NODE_MODULES.exists(), "npm")
    asked = [{"url": way.url, "deflate": way.deflate, "slow": way.slow} for way in all_ways]

    out = await output(
        node,
        "--experimental-websocket",
        "--no-warnings",
        str(HERE / "node.cjs"),
        library,
        str(NODE_MODULES),
        json.dumps(asked),
        NODE_EXTRA_CA_CERTS=str(certificate()),
    )

    found = [Found(**one) for one in json.loads(out)]
    check(all_ways, found, deflates=library != "websocket")


@pytest.fixture(scope="module")
def client_in_c(tmp_path_factory) -> Path:
    compiler = program("cc", "build-essential")
    path = tmp_path_factory.mktemp("c") / "client"
    headers = subprocess.run(
        [compiler, "-E", "-"],
        input=b"#include <libwebsockets.h>\n",
        capture_output=True,
        check=False,
    )
    need(headers.returncode == 0, "libwebsockets-dev")
    build = [compiler, "-o", str(path), str(HERE / "client.c"), "-lwebsockets"]
    subprocess.run(build, check=True)
    return path


async def test_libwebsockets(all_ways, client_in_c):
    async def run(way: Way) -> Found:
        flags = [str(int(flag)) for flag in (way.tls, way.deflate, way.slow)]
        lines = await output(
            str(client_in_c), "localhost", str(way.port), *flags, str(certificate())
        )
        *texts, code = lines.splitlines()
        return Found(texts, int(code))

    check(all_ways, await asyncio.gather(*(run(way) for way in all_ways)))


async def test_chromium(all_ways):
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_path(), args=CHROMIUM_FLAGS
        )
        page = await browser.new_page(ignore_https_errors=True)
        async with asyncio.timeout(PATIENCE):
            found = [await in_page(page, way) for way in all_ways]
        await browser.close()

    check(all_ways, found)


async def in_page(page: Any, way: Way) -> Found:
    return Found(**await page.evaluate(_IN_PAGE, {"url": way.url, "slow": way.slow}))


_IN_PAGE = """({ url, slow }) => new Promise((resolve) => {
    const socket = new WebSocket(url);
    const texts = [];
    socket.onopen = () => socket.send('{"topic": "go"}');
    socket.onmessage = ({ data }) => {
        texts.push(data);
        const until = performance.now() + (slow ? 2 : 0);
        while (performance.now() < until);
    };
    socket.onclose = ({ code }) =>
        resolve({ texts, code, compressed: socket.extensions !== "" });
})"""


async def output(*command: str, **environment: str) -> str:
    """Run a program to its end; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()
