"""The configurations of nginx in docs/running.md, in a real nginx before a real server."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from aiohttp import ClientSession
from playwright.async_api import async_playwright
from websockets.exceptions import InvalidStatus
from yarl import URL

from eyewall import ConnMeta, Overloaded, Server
from eyewall.testing.logs import RecordingLogger
from tests.certificate import certificate, tls_contexts
from tests.entrypoints.chat_support import CHROMIUM_FLAGS, chromium_path
from tests.entrypoints.wire import eventually, free_port, peer, soon
from tests.libraries.servers import listening, nginx_with

PAGE = Path(__file__).parents[2] / "docs" / "running.md"
PLAIN, TLS = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
HEAD, _, _ = PLAIN.partition("server {\n    listen")
"""What the variant with TLS keeps of the plain one."""

HOST = "        proxy_set_header Host $http_host;"


def put(text: str, *pairs: tuple[str, str]) -> str:
    """Replace what stands on the page, and has to stand there, once or more."""
    for old, new in pairs:
        assert old in text, f"the page has no {old!r} any more"
        text = text.replace(old, new)
    return text


class Site:
    """An nginx before one or more servers, and where a browser finds it."""

    def __init__(self, scheme: str, port: int, plain: int, servers: list[Server]) -> None:
        self.plain = f"http://localhost:{plain}"
        """Where it listens in the clear, too."""
        self.origin = f"{scheme}://localhost:{port}"
        self.url = f"{self.origin.replace('http', 'ws')}/ws"
        self.server = servers[0]

    async def get(self, path: str) -> int:
        async with ClientSession() as client:
            url = URL(f"{self.origin}{path}", encoded=True)
            async with client.get(url, ssl=tls_contexts()[1]) as answer:
                return answer.status

    async def refusal(self) -> tuple[int, dict]:
        """The status for a browser, and what the server's log says of it."""
        with pytest.raises(InvalidStatus) as refused:
            async with peer(self.url, origin=self.origin):
                pass
        return refused.value.response.status_code, self.server.logger.fields("handshake_refused")


@contextlib.asynccontextmanager
async def site(folder, *changes, tls=False, servers=({},)):
    """``changes`` are made to the page's configuration, beside its ports and paths."""
    port, redirect = free_port(), free_port()
    config = PLAIN if not tls else HEAD + TLS
    async with contextlib.AsyncExitStack() as stack:
        started = []
        for at, options in zip(("8080", "8081"), servers, strict=False):
            known = {"trusted_proxies": ["127.0.0.1"], "logger": RecordingLogger()}
            server = Server(**(known | options))
            await server.start(port=0)
            stack.push_async_callback(server.shutdown, timeout=1)
            started.append(server)
            config = put(config, (f"server 127.0.0.1:{at} ", f"server 127.0.0.1:{server.port} "))
        if tls:
            config = put(
                config,
                ("listen 80;", f"listen 127.0.0.1:{redirect};"),
                ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
                ("/etc/ssl/live.example.com/chain.pem", str(certificate())),
                ("/etc/ssl/live.example.com/key.pem", str(certificate())),
            )
        else:
            config = put(config, ("listen 80;", f"listen 127.0.0.1:{port};"))
        config = put(config, ("/var/log/nginx/access.log", str(folder / "access.log")))
        stack.enter_context(nginx_with(folder, put(config, *changes)))
        await listening(port)
        yield Site("https" if tls else "http", port, redirect if tls else port, started)


BOTH = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@BOTH
async def test_a_page_is_let_in_and_the_address_of_its_client_is_known(tmp_path, tls):
    seen = []

    def note(handshake):
        seen.append((handshake.ip, handshake.headers.get("X-Forwarded-Proto")))
        return ConnMeta(user_id="ada")

    async with (
        site(tmp_path, tls=tls, servers=[{"authenticator": note}]) as here,
        peer(here.url, origin=here.origin, headers={"X-Forwarded-For": "203.0.113.7"}) as client,
    ):
        assert client.welcome["data"]["user_id"] == "ada"
        assert seen == [("203.0.113.7", "https" if tls else "http")]


@BOTH
async def test_a_page_of_another_origin_is_not(tmp_path, tls):
    async with site(tmp_path, tls=tls) as here:
        for origin in ("https://evil.example", here.origin.rpartition(":")[0], "null"):
            with pytest.raises(InvalidStatus):
                async with peer(here.url, origin=origin):
                    pass
        assert here.server.hub.stats().refused == {"origin": 3}


@BOTH
async def test_health_and_metrics_are_hidden_and_the_client_s_script_is_not(tmp_path, tls):
    async with site(tmp_path, tls=tls) as here:
        assert await here.get("/eyewall.js") == 200
        for path in ("/metrics", "/healthz", "/readyz", "/%6detrics", "//readyz", "/x/../healthz"):
            assert await here.get(path) == 404
        assert here.server.hub.stats().refused == {}


@BOTH
async def test_no_token_is_in_the_log(tmp_path, tls):
    """Of who was let in, who was not, and who was sent to TLS."""
    known = {"authenticator": lambda h: ConnMeta() if h.query["token"] == "s3cret-in" else None}
    async with site(tmp_path, tls=tls, servers=[known]) as here:
        async with peer(f"{here.url}?token=s3cret-in", origin=here.origin):
            """It is written when the connection ends."""
        with pytest.raises(InvalidStatus):
            async with peer(f"{here.url}?token=s3cret-out", origin=here.origin):
                pass
        async with (
            ClientSession(headers={"Referer": f"{here.origin}/?token=s3cret"}) as client,
            client.get(f"{here.plain}/chat?token=s3cret", allow_redirects=False),
        ):
            pass
        log = tmp_path / "access.log"
        await eventually(lambda: len(log.read_text().splitlines()) >= 3)

        assert '"GET /ws" 101 ' in log.read_text()
        assert '"GET /ws" 401 ' in log.read_text()
        assert '"GET /chat" ' in log.read_text()
        assert "s3cret" not in log.read_text()


async def test_who_comes_in_the_clear_is_sent_to_tls(tmp_path):
    async with (
        site(tmp_path, tls=True) as here,
        ClientSession() as client,
        client.get(f"{here.plain}/chat?room=1", allow_redirects=False) as answer,
    ):
        assert answer.status == 301
        assert answer.headers["Location"] == "https://localhost/chat?room=1"


async def test_a_browser_is_let_in_and_sees_why_it_is_not(tmp_path):
    """With the host and the port in its address, in the clear and with TLS."""
    known = {"authenticator": lambda h: ConnMeta() if "in" in h.query else None}
    servers = [{**known, "refuse_with": "close"}]
    async with async_playwright() as playwright, contextlib.AsyncExitStack() as stack:
        browser = await playwright.chromium.launch(
            executable_path=chromium_path(), args=CHROMIUM_FLAGS
        )
        stack.push_async_callback(browser.close)
        page = await browser.new_page(ignore_https_errors=True)
        for tls in (False, True):
            folder = tmp_path / str(tls)
            folder.mkdir()
            here = await stack.enter_async_context(site(folder, tls=tls, servers=servers))
            await page.goto(f"{here.origin}/eyewall.js")

            assert await soon(page.evaluate(_OPENS, f"{here.url}?in=1")) == "open"
            assert await soon(page.evaluate(_OPENS, here.url)) == "4504 auth_failed"


_OPENS = """(url) => new Promise((resolve) => {
    const socket = new WebSocket(url, ["eyewall.v1.json"]);
    socket.onmessage = () => { socket.onclose = null; socket.close(); resolve("open"); };
    socket.onclose = ({ code, reason }) => resolve(`${code} ${reason}`);
})"""


async def test_a_node_that_takes_nobody_is_passed_over_for_another(tmp_path):
    def busy(handshake):
        raise Overloaded("full")

    changes = [("# server 127.0.0.1", "server 127.0.0.1")]
    servers = [{"authenticator": busy}, {}]
    async with (
        site(tmp_path, *changes, servers=servers) as here,
        peer(here.url, origin=here.origin),
        peer(here.url, origin=here.origin),
    ):
        assert set(here.server.hub.stats().refused) == {"overloaded"}


# --- and what happens without


async def test_without_the_host_a_page_gets_403_and_the_log_says_what_is_not_what(tmp_path):
    async with site(tmp_path, (HOST, "")) as here:
        status, line = await here.refusal()

        assert status == 403
        assert line["hint"] == (
            f"origin {here.origin} is not Host eyewall: "
            "list it in check_origin, or have the proxy in front pass Host on"
        )
        assert (line["origin"], line["host"]) == (here.origin, "eyewall")


async def test_without_its_port_a_host_is_another_origin(tmp_path):
    async with site(tmp_path, ("$http_host;", "$host;")) as here:
        status, line = await here.refusal()

        assert (status, line["host"]) == (403, "localhost")
        assert line["hint"].startswith(f"origin {here.origin} is not Host localhost: ")


async def test_a_proxy_that_changes_the_host_may_say_what_it_was(tmp_path):
    told = "        proxy_set_header X-Forwarded-Host $http_host;"
    async with site(tmp_path, (HOST, told)) as here, peer(here.url, origin=here.origin):
        assert len(here.server.hub.connection_ids()) == 1


@pytest.mark.parametrize(
    "left_out",
    ["        proxy_set_header Upgrade $http_upgrade;", "        proxy_http_version 1.1;"],
)
async def test_without_the_upgrade_the_answer_is_426_and_the_log_says_so(tmp_path, left_out):
    async with site(tmp_path, (left_out, "")) as here:
        status, line = await here.refusal()

        assert (status, line["reason"]) == (426, "not_an_upgrade")
        assert line["hint"].endswith("must speak HTTP/1.1, and pass Upgrade and Connection on")
