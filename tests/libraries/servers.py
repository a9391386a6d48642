"""Servers that send 100 messages and then a close with 4503, directly and through nginx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eyewall import CompressionConfig, DisconnectReason, Server
from tests.certificate import certificate, tls_contexts
from tests.faults.support import die_with_parent
from tests.ports import free_port

PATIENCE = 30 * float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))

MESSAGES = 100
PAD = "".join(chr(ord("a") + n * n % 26) for n in range(500))
CLOSED = 4503


def messages() -> list[Any]:
    return [{"n": n, "pad": PAD} for n in range(MESSAGES)]


def need(found: Any, package: str) -> None:
    """Skip where a part is missing that is no wheel, and fail there under CI."""
    if not found:
        missing = f"{package} is missing: tests of clients need it (on Debian: {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


def program(name: str, package: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    need(path, package)
    return str(path)


@dataclass(frozen=True)
class Way:
    """How a client comes to its messages."""

    name: str
    port: int
    tls: bool
    deflate: bool
    slow: bool
    """Whether it has 2 ms of work with each message."""

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://localhost:{self.port}/ws"


@contextlib.asynccontextmanager
async def ways(folder: Path) -> AsyncIterator[list[Way]]:
    """Plain and TLS, with deflate and without, to the server itself and through nginx; some
    of them again for a slow client."""
    async with contextlib.AsyncExitStack() as stack:
        ports: dict[tuple[str, bool], int] = {}
        for deflate in (False, True):
            for name, tls in (("plain", False), ("tls", True)):
                server = await stack.enter_async_context(running(deflate=deflate, tls=tls))
                ports[name, deflate] = server.port
            for name in ("nginx", "nginx tls"):
                ports[name, deflate] = free_port()
        stack.enter_context(nginx(folder, ports))
        found = [
            Way(_title(name, deflate, slow), port, "tls" in name, deflate, slow)
            for (name, deflate), port in ports.items()
            for slow in (False, True)
            if not slow or deflate == ("tls" in name)
        ]
        for way in found:
            await listening(way.port)
        yield found


def _title(name: str, deflate: bool, slow: bool) -> str:
    return name + (" deflate" if deflate else "") + (" slow" if slow else "")


@contextlib.asynccontextmanager
async def running(*, deflate: bool, tls: bool) -> AsyncIterator[Server]:
    compression = CompressionConfig() if deflate else None
    server = Server(compression=compression, check_origin=lambda *_: True)

    @server.on("go")
    async def go(ctx, msg):
        for data in messages():
            await ctx.send("count", "message", data)
        await ctx.conn.close(DisconnectReason.DISCONNECTED)

    await server.start(port=free_port(), ssl=tls_contexts()[0] if tls else None)
    try:
        yield server
    finally:
        await server.shutdown(1)


def nginx(
    folder: Path, ports: dict[tuple[str, bool], int]
) -> contextlib.AbstractContextManager[None]:
    blocks = "".join(
        _block(ports[name, deflate], ports["plain", deflate], tls="tls" in name)
        for name, deflate in ports
        if "nginx" in name
    )
    return nginx_with(folder, blocks)


@contextlib.contextmanager
def nginx_with(folder: Path, blocks: str) -> Iterator[None]:
    """Run nginx with these blocks in its ``http``; what it says of itself is in ``folder``."""
    path = program("nginx", "nginx")
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, blocks=blocks))
    process = subprocess.Popen(
        [path, "-c", str(config), "-p", str(folder), "-e", str(folder / "error.log")],
        preexec_fn=die_with_parent,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {blocks}
}}
"""


def _block(port: int, target: int, *, tls: bool) -> str:
    pem = certificate()
    secured = f"ssl_certificate {pem}; ssl_certificate_key {pem};" if tls else ""
    return (
        f"server {{ listen 127.0.0.1:{port}{' ssl' if tls else ''}; {secured} location / {{ "
        f"proxy_pass http://127.0.0.1:{target}; proxy_http_version 1.1; "
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; } }\n"
    )


async def listening(port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            await asyncio.sleep(0.01)


@dataclass
class Found:
    """What a client got."""

    texts: list[str]
    code: int | None
    compressed: bool | None = None
    """None where the library does not tell."""

    def summary(self) -> tuple[int, int | None]:
        """How many of the messages came, from the first on in their order, and the code."""
        got = [json.loads(text) for text in self.texts]
        data = [one["data"] for one in got if one["topic"] == "count"]
        return (len(data) if data == messages()[: len(data)] else -1), self.code
