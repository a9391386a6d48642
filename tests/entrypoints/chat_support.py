"""What the chat's tests share: a client that speaks the protocol, a server, a browser."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from eyewall.chat import make_server
from eyewall.server.server import Server
from tests.libraries.servers import need
from tests.ports import free_port

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
"""Stretches every wait on slow machines."""

WITHIN = 15 * UNIT
"""Seconds that anything may take which is expected to happen, also where other tests use
the same cores."""

CHROMIUM = Path("/usr/bin/chromium")

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

_PR_SET_PDEATHSIG = 1


class Refusal(Exception):
    """A nack or an error; ``code`` is the protocol's."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(str(data))
        self.code = data.get("code")
        self.data = data


class Visitor:
    """A connection to the chat, without a page: requests, and what comes in besides."""

    def __init__(self, socket: ClientConnection, *, acks: bool = True) -> None:
        self._socket = socket
        self._acks = acks
        self._ids = (f"r{n}" for n in itertools.count())
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.inbox: list[dict[str, Any]] = []
        """What came in and was not taken by ``receive``, in order."""
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def closed(self) -> int | None:
        """Wait for the end of the connection, and return its code."""
        await asyncio.wait_for(self._socket.wait_closed(), WITHIN)
        return self._socket.close_code

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._read_all()

    async def _read_all(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if message.get("event") in {"ack", "error"} and message.get("ref") in self._answers:
                self._answers.pop(message["ref"]).set_result(message["data"])
                continue
            self.inbox.append(message)
            self._news.set()
            if message.get("ack") and self._acks:
                await self._send(topic=message["topic"], event="ack", ref=message["id"])

    async def _send(self, **envelope: Any) -> None:
        await self._socket.send(json.dumps(envelope))

    async def request(self, topic: str, data: Any = None, *, id: str | None = None) -> Any:
        """Ask, and return the data of the ack; raises ``Refusal``."""
        ref = id or next(self._ids)
        answer = self._answers[ref] = asyncio.get_running_loop().create_future()
        await self._send(id=ref, topic=topic, data=data, ack=True)
        async with asyncio.timeout(WITHIN * 3):
            found = await answer
        if found.get("status") == "nack":
            raise Refusal(found)
        return {k: v for k, v in found.items() if k not in {"message_id", "status"}}

    async def enter(self, room: str) -> Self:
        await self.request("chat:create", {"room": room})
        await self.request("system:join", {"room": room})
        return self

    async def receive(self, topic: str, event: str | None = None) -> dict[str, Any]:
        """Return the data of the first message that fits, also of those that came before."""
        async with asyncio.timeout(WITHIN):
            while True:
                for message in self.inbox:
                    fits = message["topic"] == topic
                    if fits and event in (None, message.get("event", "message")):
                        self.inbox.remove(message)
                        return dict(message["data"])
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        await self._socket.close()
        await self._reader


@contextlib.asynccontextmanager
async def chat_server(**overrides: Any) -> AsyncIterator[Server]:
    """Run the chat's server in this process, on a free port."""
    server = make_server(**overrides)
    await server.start(port=0)
    try:
        yield server
    finally:
        await server.shutdown(timeout=1.0)


@contextlib.asynccontextmanager
async def visitors(server: Server) -> AsyncIterator[Callable[..., Any]]:
    """Give a function that lets somebody in; all leave at the end."""
    there: list[Visitor] = []

    async def visit(name: str | None = None, *, acks: bool = True) -> Visitor:
        url = server.url if name is None else f"{server.url}?name={urllib.request.quote(name)}"
        visitor = Visitor(await connect(url, subprotocols=["eyewall.v1.json"]), acks=acks)
        there.append(visitor)
        await visitor.receive("system:welcome")
        return visitor

    try:
        yield visit
    finally:
        for visitor in there:
            await visitor.close()


# --- the real thing: `eyewall serve` and a browser


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def serving(port: int | None = None, **environ: str) -> Iterator[int]:
    """Run ``eyewall serve`` as a process; gives its port."""
    port = port or free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "eyewall", "serve", "--port", str(port)],
        env=os.environ | environ,
        preexec_fn=_die_with_parent,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/", process)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(15 * UNIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20 * UNIT
    while time.monotonic() < deadline:
        assert process.poll() is None, f"eyewall serve ended with {process.returncode}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing answers at {url}")


def chromium_path() -> Path:
    """The path of the browser; see ``need`` for a machine without one."""
    need(CHROMIUM.exists(), "chromium")
    return CHROMIUM


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


class Window:
    """A browser window of its own (no cookies or storage are shared), and its complaints."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(WITHIN * 1000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def _listen(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def come_in(self, name: str) -> Self:
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Come in").click()
        self.page.locator("#house").wait_for()
        self.page.locator("#subtitle", has_text="pe").wait_for()  # person, people
        return self

    def say(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        self.page.keyboard.press("Enter")
