"""The proxy that other tests rely on: each fault is really one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import TcpProxy

SHORT = 0.3


def echo(listener: socket.socket) -> None:
    def serve(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    peer.sendall(data)
            except OSError:
                pass

    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=echo, args=(listener,), daemon=True)
    thread.start()
    with TcpProxy("127.0.0.1", listener.getsockname()[1]) as proxy:
        yield proxy
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        assert said(client, b"hello") == b"hello"
        yield client


def said(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    got = b""
    while len(got) < len(text):
        got += client.recv(65536)
    return got


def test_it_carries_more_than_its_buffers_hold(client):
    text = bytes(range(256)) * 16384
    sender = threading.Thread(target=client.sendall, args=(text,))

    sender.start()
    got = bytearray()
    while len(got) < len(text):
        got += client.recv(65536)
    sender.join()

    assert got == text


def test_a_cut_breaks_what_is_open_and_lets_new_ones_in(proxy, client):
    proxy.cut()

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        assert said(again, b"again") == b"again"


def test_a_stalled_connection_tells_nobody_and_loses_nothing(proxy, client):
    proxy.stall()
    client.sendall(b"wait")

    client.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        client.recv(4)
    client.settimeout(5)
    proxy.resume()

    assert client.recv(4) == b"wait"


def test_refusing_keeps_those_who_are_in(proxy, client):
    proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    assert said(client, b"still here") == b"still here"

    proxy.resume()

    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        assert said(again, b"again") == b"again"


def test_a_delay_counts_each_way(proxy, client):
    proxy.delay = 0.1
    before = time.monotonic()

    assert said(client, b"slow") == b"slow"
    assert time.monotonic() - before >= 0.2


def test_an_end_on_one_side_reaches_the_other(proxy, client):
    client.shutdown(socket.SHUT_WR)

    assert client.recv(1) == b""


def test_a_server_that_is_gone_resets_the_client():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        gone = nobody.getsockname()[1]

    with (
        TcpProxy("127.0.0.1", gone) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)
