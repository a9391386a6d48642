"""Every file in ``examples`` is run as it is, by a client that types what its first lines say."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, async_playwright, expect
from websockets.asyncio.client import ClientConnection, connect

from tests.entrypoints.chat_support import CHROMIUM_FLAGS, chromium_path
from tests.faults.proxy import TcpProxy
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
WITHIN = 40 * UNIT
"""Seconds that anything may take which is expected to happen."""

expect.set_options(timeout=WITHIN * 1000)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""


class Client:
    """Types lines, and reads what comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def type(self, line: str) -> None:
        await self.socket.send(line)

    async def read(self) -> dict[str, Any]:
        return dict(json.loads(await asyncio.wait_for(self.socket.recv(), WITHIN)))

    async def until(self, **fields: Any) -> dict[str, Any]:
        """Read on to the first message with these fields."""
        while True:
            message = await self.read()
            if message.items() >= fields.items():
                return message

    async def ack(self, message: dict[str, Any]) -> None:
        await self.type(json.dumps({"event": "ack", "ref": message["id"]}))


class Example:
    """One of the files, running."""

    def __init__(self, name: str, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        text = docstring(ROOT / "examples" / name)
        self.lines = [line.strip() for line in re.findall(r"(?m)^ +\{.*\}$", text)]
        """What its first lines tell to type."""
        self.commands = text

    @contextlib.asynccontextmanager
    async def client(self, query: str = "") -> AsyncIterator[Client]:
        assert query in self.commands, "the file says how to connect"
        async with connect(f"ws://127.0.0.1:{self.port}/ws{query}") as socket:
            yield Client(socket)

    async def logged(self, what: str) -> str:
        """Read on in the log to the first line with ``what``."""
        assert self.process.stderr is not None
        seen = ""
        async with asyncio.timeout(WITHIN):
            while line := (await self.process.stderr.readline()).decode():
                seen += line
                if what in line:
                    return line
        raise AssertionError(f"ended without {what!r}:\n{seen}")

    async def http(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        """Return what the page says, read as JSON."""
        assert f"localhost:8080{path}" in self.commands, "the file says what to ask"
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, body, method=method)

        def ask() -> bytes:
            with urllib.request.urlopen(request, timeout=WITHIN) as answer:
                return bytes(answer.read())

        return json.loads(await asyncio.to_thread(ask) or "null")


@contextlib.asynccontextmanager
async def running(name: str, **environ: str) -> AsyncIterator[Example]:
    """Run the file on a free port; SIGTERM has to end it with 0."""
    port = free_port()
    process = await create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples" / name)),
        env={**os.environ, "PORT": str(port), **environ},
        stderr=PIPE,
    )
    try:
        example = Example(name, process, port)
        await example.logged("listening")
        yield example
        process.terminate()
        _, rest = await asyncio.wait_for(process.communicate(), WITHIN)
        assert process.returncode == 0, rest.decode()
        assert b"Traceback" not in rest, rest.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_echo():
    async with running("echo.py") as example, example.client() as client:
        (line,) = example.lines

        await client.type(line)

        answer = await client.read()
        assert answer["topic"] == "echo:pong"
        assert answer["data"] == {"echo": "hello"}


async def test_chat_rooms():
    async with running("chat_rooms.py") as example, example.client("?name=ada") as ada:
        enter, say, who, leave = example.lines
        await ada.type(enter)
        entered = (await ada.until(ref="1"))["data"]
        assert (entered["members"], entered["said"]) == (1, [])
        await ada.type(say)
        assert (await ada.until(topic="room:tea"))["data"] == {"from": "ada", "text": "hello"}
        await ada.type(who)
        assert (await ada.until(ref="2"))["data"]["users"] == ["ada"]

        await ada.type(leave)
        assert (await ada.until(ref="3"))["data"]["left"] is True
        await ada.type(say)
        assert (await ada.until(event="error"))["data"]["code"] == "not_a_member"
        await ada.type(enter.replace("tea", "no such room"))
        assert (await ada.until(ref="1"))["data"]["code"] == "room_not_found"
        await ada.type(enter)
        said = (await ada.until(ref="1"))["data"]["said"]
        assert said == [{"from": "ada", "text": "hello"}], "also who comes later sees it"


async def test_private_messages():
    async with running("private_messages.py") as example:
        send, confirm = example.lines
        async with example.client("?token=ada-1") as ada:
            await ada.type(send)
            assert (await ada.until(ref="1"))["data"]["code"] == "user_offline"

            async with example.client("?token=bob-1") as bob:
                await ada.type(send)
                note = await bob.until(topic="pm:message")
                assert note["ack"] is True
                assert note["data"] == {"from": "ada", "text": "hello"}
                await bob.type(confirm.replace("ID", note["id"]))
                answer = await ada.until(ref="1")

        assert (answer["data"]["devices"], answer["data"]["confirmed"]) == (1, 1)


async def test_retries():
    async with running("retries.py") as example, example.client("?name=ada") as ada:
        (ship,) = example.lines
        await ada.type(ship)
        answer = await ada.until(ref="1")
        assert (answer["data"]["success"], answer["data"]["tries"]) == (True, 1), "it is stored"
        await example.logged("user_is_away")
        assert "user_offline" in await example.logged("not_delivered")

        async with example.client("?name=bob") as bob:
            stored = await bob.until(topic="order:shipped")
            assert stored["data"] == {"order": 7}
            await bob.ack(stored)

            await ada.type(ship)
            first = await bob.until(topic="order:shipped")
            again = await bob.until(topic="order:shipped")
            assert again["id"] == first["id"] != stored["id"], "a retry is the same message"
            await bob.ack(again)
            answer = await ada.until(ref="1")

        assert (answer["data"]["success"], answer["data"]["tries"]) == (True, 2)
        await example.logged("no_answer")
        assert "ack_timeout" in await example.logged("not_delivered")


async def test_ack_monitor():
    async with (
        running("ack_monitor.py") as example,
        example.client("?name=worker-1") as worker,
        example.client("?name=monitor-1") as monitor,
    ):
        (announce,) = example.lines
        assert (await monitor.until(topic="acks:open"))["data"] == []

        await monitor.type(announce)
        plan = await worker.until(topic="work:plan")
        assert plan["data"] == {"text": "new plan"}
        while not (pending := (await monitor.until(topic="acks:open"))["data"]):
            pass  # it was on its way before the plan
        assert [(ack["message"], ack["user"]) for ack in pending] == [(plan["id"], "worker-1")]

        await worker.ack(plan)
        result = (await monitor.until(ref="1"))["data"]
        assert (result["expected"], result["received"], result["timed_out"]) == (1, 1, False)
        assert [acker["user_id"] for acker in result["acked"]] == ["worker-1"]


async def test_health_and_stats():
    async with (
        running("health_and_stats.py") as example,
        connect(f"ws://127.0.0.1:{example.port}/ws") as socket,
    ):
        assert (await example.http("/healthz"))["status"] == "ok"
        assert (await example.http("/readyz"))["reasons"] == []
        await socket.send('{"topic": "echo:ping", "data": {"text": "hello"}}')
        await asyncio.wait_for(socket.recv(), WITHIN)

        before = await example.http("/stats")
        assert (before["connections"], before["in_messages"], before["out_messages"]) == (1, 1, 1)
        assert await example.http("/stats", "DELETE") is None
        after = await example.http("/stats")

        assert (after["connections"], after["in_messages"], after["out_messages"]) == (1, 0, 0)


async def test_embedding():
    async with running("embedding.py") as example, example.client() as client:
        answer = await example.http("/news", "POST", b"text=deployed")

        assert answer == {"reached": 1}
        message = await client.read()
        assert (message["topic"], message["data"]) == ("news", {"text": "deployed"})


# --- those with a page: in a browser, and with nothing of eyewall but the wheel


@pytest.fixture
def from_wheel(installed: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(installed)}


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    path = chromium_path()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        await browser.close()


@contextlib.asynccontextmanager
async def window(browser: Browser, example: Example, port: int = 0) -> AsyncIterator[Page]:
    """The example's page in a window of its own; it may not complain of anything else than
    a cut."""
    complaints: list[str] = []
    context = await browser.new_context()
    context.set_default_timeout(WITHIN * 1000)
    page = await context.new_page()
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    assert "http://localhost:8080/" in example.commands, "the file says what to open"
    await page.goto(f"http://127.0.0.1:{port or example.port}/")
    yield page
    await context.close()
    assert [said for said in complaints if "ERR_CONNECTION" not in said] == []


async def test_what_runs_from_the_wheel_is_the_wheel_s(from_wheel, installed):
    process = await create_subprocess_exec(
        *(sys.executable, "-c", "import eyewall; print(eyewall.__file__)"),
        env={**os.environ, **from_wheel},
        stdout=PIPE,
    )
    out, _ = await process.communicate()

    assert Path(out.decode()).is_relative_to(installed)


async def test_live_dashboard(from_wheel):
    """With one value in ten minutes it can't be the next one that a page shows."""
    async with (
        running("live_dashboard.py", EVERY="600", **from_wheel) as example,
        chromium() as browser,
        window(browser, example) as page,
    ):
        requests = page.locator("#requests")
        await expect(requests).to_have_text(re.compile(r"\d+"))
        first = await requests.inner_text()
        await page.reload()

        await expect(requests).to_have_text(first)
        await expect(page.locator("#rows tr")).to_have_count(1)
        await expect(page.get_by_role("status")).to_have_text("Live")


async def test_live_dashboard_has_what_came_before_and_goes_on_after_a_cut(from_wheel):
    async with (
        running("live_dashboard.py", EVERY="0.1", **from_wheel) as example,
        chromium() as browser,
    ):
        with TcpProxy("127.0.0.1", example.port) as proxy:
            async with window(browser, example, proxy.port) as page:
                rows, state = page.locator("#rows tr"), page.get_by_role("status")
                await expect(rows).to_have_count(8)
                await page.reload()
                await expect(rows).to_have_count(8)
                line = await page.locator("#chart .line").get_attribute("d")
                assert (line or "").count("L") >= 7
                proxy.refuse()
                proxy.cut()
                await expect(state).to_contain_text("Offline")
                before = await newest(rows)
                proxy.resume()
                await expect(state).to_have_text("Live")
                after = before
                async with asyncio.timeout(WITHIN):
                    while after[-1] <= before[0]:
                        await asyncio.sleep(0.05)
                        after = await newest(rows)

                assert after == list(range(after[0], after[0] - 8, -1)), "no gap, no repeat"


async def newest(rows: Locator) -> list[int]:
    """The offsets of the values in the table."""
    numbers = "rows => rows.map(row => Number(row.dataset.offset))"
    return list(await rows.evaluate_all(numbers))


async def test_answer_stream(from_wheel):
    """A reload in the middle and a window that opens late show what was said, each piece once."""
    async with (
        running("answer_stream.py", PAUSE="0.05", **from_wheel) as example,
        chromium() as browser,
        window(browser, example) as one,
        example.client() as listener,
    ):
        await listener.type('{"topic": "system:join", "data": {"room": "answers"}}')
        await one.get_by_label("Your question").fill("Why do <b>storms</b> {turn}?")
        await one.keyboard.press("Enter")
        await expect(one.locator(".text")).to_contain_text("This comes in")
        async with window(browser, example) as late:
            await one.reload()
            said = ""
            while (message := await listener.until(topic="answer"))["event"] != "end":
                said += message["data"]["text"] if message["event"] == "piece" else ""
            assert message["data"]["text"] == "done"

            for page in (one, late):
                answer = page.locator("article[aria-busy=false]")
                await expect(answer.locator("h2")).to_have_text("Why do <b>storms</b> {turn}?")
                assert await answer.locator(".text").text_content() == said
                await expect(page.get_by_role("button", name="Stop")).to_be_disabled()


async def test_answer_stream_is_stopped_in_all_windows_by_one_of_them(from_wheel):
    async with (
        running("answer_stream.py", PAUSE="0.1", **from_wheel) as example,
        chromium() as browser,
        window(browser, example) as one,
        window(browser, example) as other,
    ):
        for question in ("First?", "Second?"):
            await one.get_by_label("Your question").fill(" ")
            await one.get_by_role("button", name="Ask").click()
            await expect(one.locator("#question:invalid")).to_have_count(1)
            await one.get_by_label("Your question").fill(question)
            await one.get_by_role("button", name="Ask").click()
            for page in (one, other):
                article = page.locator("article").first
                await expect(article.locator("h2")).to_have_text(question)
                await expect(article.locator(".text")).to_contain_text("asked")
        await other.get_by_role("button", name="Stop").click()
        texts = []
        for page in (one, other):
            await expect(page.get_by_text("Stopped.")).to_have_count(2)
            await expect(page.locator("article[aria-busy=false]")).to_have_count(2)
            texts.append(await page.locator(".text").all_text_contents())

        assert texts[0] == texts[1]
        assert all("asks anew" not in text for text in texts[0])


SCRIPTED = """export const connect = () =>
  ({ on: (_, handler) => (globalThis.tell = handler), onLost() {}, onState() {}, async join() {} });
"""
"""A client that does nothing, and lets a test say what comes."""


async def test_answer_stream_shows_an_answer_once_that_it_is_told_twice(from_wheel):
    """Two servers that are gone one after the other leave it with two joins under way."""
    async with (
        running("answer_stream.py", **from_wheel) as example,
        chromium() as browser,
        window(browser, example) as page,
    ):
        await page.route(
            "**/eyewall.js",
            lambda route: route.fulfill(body=SCRIPTED, content_type="text/javascript"),
        )
        await page.reload()
        said = [("question", "Why?"), ("piece", "So "), ("piece", "it is. "), ("end", "done")]
        for event, text in (*said[:3], *said):
            message = {"event": event, "data": {"answer": "a", "text": text}}
            await page.evaluate("message => tell(message)", message)

        await expect(page.locator("article")).to_have_count(1)
        await expect(page.locator(".text")).to_have_text("So it is. ")


async def test_answer_stream_takes_no_question_that_is_too_long_or_empty():
    async with running("answer_stream.py") as example, example.client() as client:
        for text in ("x" * 301, " "):
            await client.type(json.dumps({"topic": "answer:ask", "data": {"text": text}}))
            assert (await client.until(event="error"))["data"]["code"] == "validation"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_tested_and_listed(path):
    """It is what a newcomer reads first."""
    assert len(path.read_text().splitlines()) < 80
    assert f"test_{path.stem}" in globals()
    for page in ("README.md", "docs/first-steps.md"):
        assert f"examples/{path.name})" in (ROOT / page).read_text()


def test_there_is_an_example_of_each_kind():
    kinds = {"echo", "chat_rooms", "private_messages", "retries", "ack_monitor"}
    kinds |= {"health_and_stats", "embedding", "live_dashboard", "answer_stream"}

    assert {path.stem for path in EXAMPLES} == kinds
