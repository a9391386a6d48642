"""The listening port: where it is, who gets in, and that it is given back."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from contextlib import asynccontextmanager, closing

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from eyewall.adapters.web.http.origin import Hosts
from eyewall.server import listener as listener_module
from eyewall.server.listener import CannotListen, Listener
from tests.certificate import tls_contexts
from tests.entrypoints.wire import UNIT, WITHIN, free_port, soon


class Hello(RequestHandler):
    def get(self):
        self.finish("hello")


class Slow(RequestHandler):
    async def get(self):
        self.application.settings.setdefault("begun", []).append(1)
        self.write("...")
        await self.flush()
        await asyncio.Event().wait()


RULES = [("/hello", Hello), ("/slow", Slow)]


@asynccontextmanager
async def listening(host="127.0.0.1", port=0, ssl=None, handshake_timeout=WITHIN):
    listener = Listener(host, port, ssl)
    try:
        listener.serve(RULES, handshake_timeout)
        yield listener
    finally:
        await listener.close()


async def fetch(url, **options):
    with closing(AsyncHTTPClient(force_instance=True)) as client:
        return (await soon(client.fetch(url, **options))).body


def is_free(port):
    """Whether somebody else may listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0 and probe.bind(("", port)) is None


needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


# --- where


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EADDRINUSE, "port 80 on here is in use; take another with port="),
        (errno.EACCES, "port 80 on here is not allowed to this user; take one of 1024 or above"),
        (errno.EPERM, "port 80 on here is not allowed to this user; take one of 1024 or above"),
        (errno.EADDRNOTAVAIL, "here is not an address of this machine"),
        (errno.EMFILE, "port 80 on here can't be listened on: Too many open files"),
    ],
)
def test_why_a_port_can_t_be_had_is_one_sentence(number, said):
    error = CannotListen(OSError(number, os.strerror(number)), "here", 80)

    assert error.explain("port=").startswith(said)
    assert error.errno == number
    assert str(error) == f"[Errno {number}] {os.strerror(number)}: 'here:80'"


async def test_port_0_takes_a_free_one_each_time():
    async with listening() as first, listening() as second:
        assert 0 < first.port != second.port > 0


async def test_a_port_that_is_named_is_taken():
    port = free_port()

    async with listening(port=port) as listener:
        assert listener.port == port
        assert await fetch(f"http://127.0.0.1:{port}/hello") == b"hello"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("0.0.0.0", "0.0.0.0"),
        ("", "localhost"),
        pytest.param("::1", "[::1]", marks=needs_ipv6),
    ],
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_the_url_is_where_clients_connect(host, shown, scheme):
    """An IPv6 address stands in brackets; every address of the machine is none."""
    listener = Listener(host, 0, tls_contexts()[0] if scheme == "wss" else None)
    try:
        assert listener.url == f"{scheme}://{shown}:{listener.port}/ws"
    finally:
        await listener.close()


@needs_ipv6
async def test_a_client_gets_in_by_ipv6():
    async with listening("::1") as listener:
        assert await fetch(f"http://[::1]:{listener.port}/hello") == b"hello"


async def test_with_a_tls_context_it_speaks_tls():
    server, client = tls_contexts()

    async with listening(ssl=server) as listener:
        url = f"https://localhost:{listener.port}/hello"
        assert await fetch(url, ssl_options=client) == b"hello"


async def reached(listener, *hosts):
    """The hosts of these that get an answer."""
    found = []
    for host in hosts:
        try:
            await fetch(f"http://{host}:{listener.port}/hello")
        except OSError:
            continue
        found.append(host)
    return found


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "families", "served"),
    [
        ("0.0.0.0", ["IPv4"], ["127.0.0.1"]),
        ("::", ["IPv6"], ["[::1]"]),
        ("*", ["IPv4", "IPv6"], ["127.0.0.1", "[::1]"]),
        ("", ["IPv4", "IPv6"], ["127.0.0.1", "[::1]"]),
        ("127.0.0.1,::1", ["IPv4", "IPv6"], ["127.0.0.1", "[::1]"]),
        ("::1, 127.0.0.2", ["IPv4", "IPv6"], ["[::1]"]),
    ],
)
async def test_each_family_is_served_that_was_asked_for_and_no_other(host, families, served):
    """On every system: what ``::`` means would else depend on it."""
    async with listening(host) as listener:
        assert listener.families == families
        assert len(listener.addresses) == len(families)
        assert all(address.endswith(f":{listener.port}") for address in listener.addresses)
        assert await reached(listener, "127.0.0.1", "[::1]") == served


async def test_a_machine_without_ipv6_has_all_addresses_nevertheless(monkeypatch):
    def bind(port, address, **options):
        if address == "::":
            raise OSError(errno.EADDRNOTAVAIL, "no IPv6 here")
        return bind_sockets(port, address, **options)

    monkeypatch.setattr(listener_module, "bind_sockets", bind)
    async with listening("*") as listener:
        assert listener.families == ["IPv4"]
        assert await reached(listener, "127.0.0.1") == ["127.0.0.1"]


async def test_where_one_of_several_can_t_be_had_none_is_taken():
    port = free_port()
    with pytest.raises(OSError, match="assign"):
        Listener("127.0.0.1,192.0.2.1", port, None)

    assert is_free(port)


def test_nothing_stays_open_for_whoever_was_told_that_a_port_is_in_use():
    """And keeps the error: what Tornado had opened would go with that only."""
    gc.collect()  # what other tests have left must not go meanwhile
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(CannotListen) as told:
            Listener("127.0.0.1", taken.getsockname()[1], None)

        assert os.listdir("/proc/self/fd") == before
        assert told.value.errno == errno.EADDRINUSE


# --- a port that can't be had


async def test_a_port_in_use_raises_where_the_listener_is_made():
    async with listening() as first:
        with pytest.raises(OSError, match="in use") as caught:
            Listener("127.0.0.1", first.port, None)

        assert caught.value.errno == errno.EADDRINUSE
        assert await fetch(f"http://127.0.0.1:{first.port}/hello") == b"hello"


async def test_an_address_of_another_machine_raises():
    with pytest.raises(OSError, match="assign") as caught:
        Listener("192.0.2.1", 0, None)

    assert caught.value.errno == errno.EADDRNOTAVAIL


# --- the end


@pytest.mark.parametrize("served", [True, False])
async def test_close_gives_the_port_back_served_or_not_and_may_be_called_twice(served):
    listener = Listener("127.0.0.1", free_port(), None)
    if served:
        listener.serve(RULES, WITHIN)

    await listener.close()
    await listener.close()

    assert is_free(listener.port)


async def test_rules_that_are_none_leave_a_listener_that_can_be_closed():
    listener = Listener("127.0.0.1", free_port(), None)
    with pytest.raises(AttributeError):
        listener.serve([42], WITHIN)

    await listener.close()

    assert is_free(listener.port)


async def test_close_ends_requests_that_are_under_way():
    """A page that never answers does not hold up the end."""
    async with listening() as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        await soon(reader.readuntil(b"\r\n\r\n"))

        await soon(listener.close())

        assert b"..." in await soon(reader.read())
        writer.close()


# --- who gets in


async def test_a_client_that_does_not_finish_its_request_is_cut_off():
    async with listening(handshake_timeout=0.1 * UNIT) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /hello HTTP/1.1\r\n")

        assert await soon(reader.read()) == b""
        writer.close()


async def test_requests_are_not_logged(caplog):
    """A query may hold a token."""
    caplog.set_level("DEBUG")
    async with listening() as listener:
        await fetch(f"http://127.0.0.1:{listener.port}/hello?token=hunter2")

    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("port", [-1, 65536, 70000, "8080", 80.0, True, None])
def test_a_port_that_is_none_is_refused(port):
    """The system would take 70000 for 4464."""
    with pytest.raises(ValueError, match="port"):
        Listener("127.0.0.1", port, None)


@pytest.mark.parametrize("ssl", ["chain.pem", True, {"certfile": "chain.pem"}])
def test_what_is_no_context_for_tls_is_refused(ssl):
    """Each client would be cut off, one by one."""
    with pytest.raises(ValueError, match=r"ssl must be an ssl\.SSLContext"):
        Listener("127.0.0.1", 0, ssl)


# --- for which hosts


async def test_pages_are_served_for_the_hosts_that_are_listed_only():
    """A page whose name was made to point here asks under that name."""
    listener = Listener("127.0.0.1", 0, None)
    listener.serve(RULES, WITHIN, hosts=Hosts(["here.example"]))
    try:
        for target, host, status in (
            ("/hello", "here.example", 200),
            ("/hello", f"here.example:{listener.port}", 200),
            ("/hello", "evil.example", 403),
            ("/nowhere", "evil.example", 403),
            ("http://here.example/hello", "evil.example", 200),
            ("http://evil.example/hello", "here.example", 403),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert int((await soon(reader.readline())).split()[1]) == status
            writer.close()
    finally:
        await listener.close()
