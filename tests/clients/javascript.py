"""The JavaScript client, driven by tests: in Node, and in a page of Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, async_playwright
from tornado.web import StaticFileHandler

from tests.entrypoints.chat_support import CHROMIUM_FLAGS, UNIT, chromium_path

HERE = Path(__file__).parent
PAGES = [(r"/(glue\.mjs)", StaticFileHandler, {"path": str(HERE)})]
"""What a server has to serve for clients in pages."""

WITHIN = 40 * UNIT
"""Seconds that anything may take which is expected to happen: some waits of a client that
comes back again and again add up."""

Call = Callable[[str, list[Any]], Awaitable[dict[str, Any]]]


class JsError(Exception):
    """A promise was rejected, or a call threw; ``code`` is the protocol's."""

    def __init__(self, code: str | None, text: str) -> None:
        super().__init__(text)
        self.code = code


class JsClient:
    """One client: what it is told to do, and what it saw."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    def note(self, kind: str, facts: dict[str, Any]) -> None:
        self.seen.append((kind, facts))
        self._news.set()

    async def call(self, name: str, *args: Any) -> Any:
        """Call a method, or read a field; raises ``JsError``."""
        outcome = await asyncio.wait_for(self._call(name, list(args)), WITHIN)
        if "found" not in outcome:
            raise JsError(outcome["code"], outcome["error"])
        return outcome["found"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [facts for k, facts in self.seen if k == kind]

    def heard(self, topic: str) -> list[Any]:
        """The data of what came under a topic, in order."""
        return [m["data"] for m in self.of("message") if m["topic"] == topic]

    @property
    def states(self) -> list[str]:
        return [facts["state"] for facts in self.of("state")]

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait until something is so after what the client saw."""
        async with asyncio.timeout(WITHIN):
            while not so():
                self._news.clear()
                await self._news.wait()

    async def back(self, times: int = 1) -> None:
        """Wait until it has come back so often."""
        await self.until(lambda: self.states.count("open") > times)


@contextlib.asynccontextmanager
async def in_node(url: str, **options: Any) -> AsyncIterator[JsClient]:
    node = shutil.which("node")
    assert node, "the tests need Node 20 or newer"
    process = await asyncio.create_subprocess_exec(
        node,
        "--experimental-websocket",
        "--no-warnings",
        str(HERE / "driver.mjs"),
        url,
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=16 << 20,
    )
    assert process.stdin is not None
    calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
    numbers = itertools.count()
    stdin = process.stdin

    async def call(name: str, args: list[Any]) -> dict[str, Any]:
        number = next(numbers)
        calls[number] = asyncio.get_running_loop().create_future()
        stdin.write(json.dumps([number, name, args]).encode() + b"\n")
        return await calls[number]

    client = JsClient(call)

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            number, said = json.loads(line)
            if number is None:
                client.note(*said)
            else:
                calls.pop(number).set_result(said)

    reading = asyncio.create_task(read())
    try:
        await client.call("ready")
        yield client
    finally:
        stdin.close()  # it then ends by itself
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5 * UNIT)
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading


class Chromium:
    """Clients in pages of one browser, which starts when the first of them comes. No page
    shares cookies or storage with another."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._browser: Browser | None = None

    async def _started(self) -> Browser:
        if self._browser is None:
            playwright = await self._stack.enter_async_context(async_playwright())
            self._browser = await playwright.chromium.launch(
                executable_path=chromium_path(), args=CHROMIUM_FLAGS
            )
            self._stack.push_async_callback(self._browser.close)
        return self._browser

    @contextlib.asynccontextmanager
    async def __call__(self, url: str, **options: Any) -> AsyncIterator[JsClient]:
        """Have a client in a page from the server itself, as ``url`` names it."""
        home = url.replace("ws://", "http://").replace("/ws", "/healthz")
        context = await (await self._started()).new_context()
        page = await context.new_page()

        async def call(name: str, args: list[Any]) -> dict[str, Any]:
            found: dict[str, Any] = await page.evaluate(
                "([name, args]) => window.act(name, args)", [name, args]
            )
            return found

        client = JsClient(call)
        await page.expose_function("report", lambda seen: client.note(*seen))
        await page.goto(home)
        await page.evaluate(
            """async (options) => {
                const [{ Client }, { start }] = await Promise.all(
                    [import("/eyewall.js"), import("/glue.mjs")],
                );
                window.act = start(Client, "/ws", window.report, options);
            }""",
            options,
        )
        try:
            await client.call("ready")
            yield client
        finally:
            await context.close()
