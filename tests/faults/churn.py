"""Connections that come and go by the hundred, in every way there is.

Each way takes a round and a number; it has so many connections come, and end as it says.
Those whose end takes the server a while are left to it: the round waits for them.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from typing import Any

from tests.faults.clients import CLOSE, framed, request
from tests.faults.support import WITHIN, HubProcess, until

RESET = struct.pack("ii", 1, 0)

ADDRESSES = cycle([f"127.0.0.{n}" for n in range(2, 12)])
"""Whence clients come: an address has 28,000 ports, and each stays taken for a minute."""

GOODBYE = framed((1000).to_bytes(2, "big"), CLOSE)

Way = Callable[["Round", int], None]


class Round:
    """One server, and those who are still to be let go of."""

    def __init__(self, hub: HubProcess, trusted: ssl.SSLContext) -> None:
        self.hub = hub
        self.trusted = trusted
        self.waiting: list[socket.socket] = []
        """The server ends these, in its own time."""

    def dial(
        self, count: int, *, port: int | None = None, buffer: int | None = None
    ) -> list[socket.socket]:
        return [_dial(port or self.hub.port, buffer) for _ in range(count)]

    def connect(
        self,
        count: int,
        *,
        port: int | None = None,
        buffer: int | None = None,
        session: bool = False,
        **query: Any,
    ) -> list[socket.socket]:
        """Open so many connections at once, as one user with two rooms."""
        who = {"user": "ada", "rooms": "lab,hall", **query}
        socks = self.dial(count, port=port, buffer=buffer)
        return self.upgrade(socks, request(who, session=session))

    def upgrade(self, socks: list[socket.socket], asking: bytes) -> list[socket.socket]:
        for sock in socks:
            sock.sendall(asking)
        for sock in socks:
            head = _head(sock)
            assert head.startswith(b"HTTP/1.1 101"), head
        return socks

    def connect_tls(self, count: int) -> list[socket.socket]:
        socks = self.dial(count, port=self.hub.ports[1])
        wrapped = [self.trusted.wrap_socket(s, server_hostname="127.0.0.1") for s in socks]
        asking = request({"user": "tess", "rooms": "lab"}, session=True)
        return self.upgrade(list(wrapped), asking)

    def refused(self, count: int, asking: bytes, status: int) -> None:
        """The answer is in HTTP."""
        socks = self.dial(count)
        for sock in socks:
            sock.sendall(asking)
        for sock in socks:
            assert _head(sock).startswith(f"HTTP/1.1 {status}".encode())
            sock.close()

    def finish(self) -> None:
        """See those out that the server ends."""
        see_out(self.waiting)
        self.waiting.clear()


def _dial(port: int, buffer: int | None) -> socket.socket:
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(WITHIN)
    sock.bind((next(ADDRESSES), 0))
    sock.connect(("127.0.0.1", port))
    return sock


def _head(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(4096)
        assert data, head
        head += data
    return head


def reset(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()


def close(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def see_out(socks: list[socket.socket]) -> None:
    """Read until the server has ended them."""
    for sock in socks:
        with suppress(ConnectionResetError):
            while sock.recv(65536):
                pass
        sock.close()


def say(socks: list[socket.socket], data: bytes) -> list[socket.socket]:
    for sock in socks:
        sock.sendall(data)
    return socks


def _asking(**query: Any) -> bytes:
    return request({"user": "ada", **query})


def _request(topic: str, data: str = "null") -> bytes:
    return framed(f'{{"id":"1","topic":"{topic}","ack":true,"data":{data}}}'.encode())


# --- the client ends it


def clean(here: Round, count: int) -> None:
    see_out(say(here.connect(count), GOODBYE))


def clean_after_a_request(here: Round, count: int) -> None:
    socks = here.connect(count, session=True, expires=3600)
    see_out(say(say(socks, _request("work:echo")), GOODBYE))


def without_a_word(here: Round, count: int) -> None:
    close(here.connect(count))


def with_a_reset(here: Round, count: int) -> None:
    reset(here.connect(count))


def before_a_handshake(here: Round, count: int) -> None:
    socks = here.dial(count)
    close(socks[::2])
    reset(socks[1::2])


def within_a_handshake(here: Round, count: int) -> None:
    socks = say(here.dial(count), _asking()[:70])
    close(socks[::2])
    reset(socks[1::2])


def within_authentication(here: Round, count: int) -> None:
    socks = say(here.dial(count), _asking(auth="never"))
    close(socks[::2])
    reset(socks[1::2])


def within_its_own_upgrade(here: Round, count: int) -> None:
    """It does not wait for the answer."""
    reset(say(here.dial(count), _asking(rooms="lab")))


def within_a_frame(here: Round, count: int) -> None:
    whole = framed(b"x" * 9000)
    for part in (whole[:1], whole[:6], whole[:5000], b"\x01\x85\0\0\0\0begin"):
        socks = say(here.connect(count // 4), part)
        close(socks[::2])
        reset(socks[1::2])


def within_a_fan_out(here: Round, count: int) -> None:
    socks = here.connect(count, rooms="hall")
    here.hub.tell("publish", room="hall", first=0, count=40, pad=1000)
    reset(socks[::2])
    close(socks[1::2])
    here.hub.answer("publish")


def while_stalled(here: Round, count: int) -> None:
    socks = here.connect(count, buffer=4096, user="stalled", rooms="stall")
    sent = 0
    while here.hub.ask("queued", user="stalled") < count:
        assert sent < 20_000
        here.hub.ask("publish", room="stall", first=sent, count=50, pad=1000)
        sent += 50
    reset(socks[::2])
    close(socks[1::2])
    # A reset is seen at once, the end of one that is not read by writing.
    here.hub.ask("publish", room="stall", first=sent, count=1, pad=1)


def while_a_handler_runs(here: Round, count: int) -> None:
    reset(say(here.connect(count, session=True), _request("work:nap", '{"seconds":0.05}') * 3))


def while_it_owes_acks(here: Round, count: int) -> None:
    socks = here.connect(count, user="debtor")
    until(lambda: here.hub.ask("emit_later", user="debtor") is None, "asking")
    for sock in socks:
        data = b""
        while data.count(b'"asked"') < 3:
            data += sock.recv(4096)
    close(socks)


def while_in_its_connect_hook(here: Round, count: int) -> None:
    """A gate that opens when all have gone."""
    name = "hook"
    reset(here.connect(count, connect=name, user=name))
    here.hub.ask("open", gate=name)


# --- the server ends it


def refused_by_origin(here: Round, count: int) -> None:
    asking = _asking().replace(b"\r\nUpgrade:", b"\r\nOrigin: http://evil.example\r\nUpgrade:")
    here.refused(count, asking, 403)


def refused_by_authentication(here: Round, count: int) -> None:
    here.refused(count, _asking(deny=1), 401)


def refused_for_its_key(here: Round, count: int) -> None:
    here.refused(count, _asking().replace(b"dGhl", b"!!!!"), 400)


def refused_by_a_hook(here: Round, count: int) -> None:
    here.waiting += here.connect(count, refuse=1)


def for_breaking_the_protocol(here: Round, count: int) -> None:
    here.waiting += say(here.connect(count), b"\x81\x05hello")


def disconnected(here: Round, count: int) -> None:
    socks = here.connect(count, user="kicked")
    until(lambda: here.hub.ask("stats")["connections"] >= count, "connecting")
    here.hub.ask("disconnect", user="kicked")
    here.waiting += socks


def expired(here: Round, count: int) -> None:
    here.waiting += here.connect(count, expires=0.3)


def by_heartbeat(here: Round, count: int) -> None:
    here.waiting += here.connect(count, user="silent")


def never_reading(here: Round, count: int) -> None:
    """Not even the close frame. The server gives up."""
    socks = here.connect(count, buffer=4096, user="deaf", rooms="deaf")
    sent = 0
    while here.hub.ask("queued", user="deaf") < count:
        assert sent < 20_000
        here.hub.ask("publish", room="deaf", first=sent, count=50, pad=1000)
        sent += 50
    here.waiting += socks


def handshake_too_slow(here: Round, count: int) -> None:
    here.waiting += say(here.dial(count), _asking()[:40])


def by_shutdown(here: Round, count: int) -> None:
    socks = here.connect(count, port=here.hub.ask("open_spare"))
    here.hub.tell("close_spare")
    see_out(socks)
    here.hub.answer("close_spare")


# --- over TLS


def tls_clean(here: Round, count: int) -> None:
    socks = say(here.connect_tls(count), _request("work:echo"))
    see_out(say(socks, GOODBYE))


def tls_with_a_reset(here: Round, count: int) -> None:
    reset(here.connect_tls(count))


def tls_within_a_frame(here: Round, count: int) -> None:
    close(say(here.connect_tls(count), framed(b"x" * 9000)[:5000]))


def tls_within_its_handshake(here: Round, count: int) -> None:
    """The beginning of a ClientHello."""
    socks = say(here.dial(count, port=here.hub.ports[1]), b"\x16\x03\x01\x02\x00\x01\x00")
    close(socks[::2])
    reset(socks[1::2])


WAYS: dict[Way, int] = {
    by_heartbeat: 20,
    never_reading: 10,
    handshake_too_slow: 20,
    expired: 20,
    within_authentication: 60,
    clean: 400,
    clean_after_a_request: 100,
    without_a_word: 250,
    with_a_reset: 360,
    before_a_handshake: 60,
    within_a_handshake: 80,
    within_its_own_upgrade: 80,
    within_a_frame: 100,
    within_a_fan_out: 100,
    while_stalled: 20,
    while_a_handler_runs: 40,
    while_it_owes_acks: 20,
    while_in_its_connect_hook: 20,
    refused_by_origin: 40,
    refused_by_authentication: 40,
    refused_for_its_key: 20,
    refused_by_a_hook: 40,
    for_breaking_the_protocol: 20,
    disconnected: 20,
    by_shutdown: 10,
    tls_clean: 20,
    tls_with_a_reset: 10,
    tls_within_a_frame: 10,
    tls_within_its_handshake: 10,
}
"""How many there are of each in a round. Those that take longest begin."""
