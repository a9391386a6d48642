"""Clients that are too slow, on purpose: each wait has its end, and so have they."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.clients import BINARY, PING, TEXT, Peer, framed, request
from tests.faults.hostile import DEFLATE, GROWTH, deflated, ended, fragment, unharmed
from tests.faults.support import MIB, UNIT, WITHIN, HubProcess, until

LIMIT = 8 * 1024
"""The server's max_message_size: at 8 KiB a second a message gets a second beyond the
``pong_timeout``."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """It has little patience."""
    options = {
        "compression": {"threshold": 1 << 30},
        "heartbeat": {"interval": 0.3 * UNIT, "pong_timeout": 1.0 * UNIT, "write_wait": UNIT},
        "max_message_size": LIMIT,
        "handshake_timeout": UNIT,
    }
    with HubProcess(tmp_path_factory.mktemp("hub"), options=options) as hub:
        yield hub


numbers = itertools.count()


@contextmanager
def now_and_then(act: Callable[[], Any], every: float = 0.05) -> Iterator[None]:
    """Do it again and again meanwhile, at a hostile pace."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(every):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def heard(hub: HubProcess, user: str) -> str | None:
    """The reason that the hooks heard for the user's end."""
    ends = [line[3] for line in hub.notes if line[0] == "disconnect" and line[2] == user]
    return ends[0] if ends else None


# --- sending


@pytest.mark.parametrize(
    "data",
    [
        framed(b"x" * 4000),
        fragment(b"x", TEXT) + fragment(b"x") * 100,
        fragment(deflated(bytes(4000)) * 100, 0xC0 | TEXT),
        framed(b"x" * 4000, BINARY),
        fragment(b"x", TEXT) + framed(b"x", PING) * 100,
    ],
    ids=["text", "fragments", "compressed", "binary", "pings"],
)
def test_a_message_that_never_ends_ends_with_1008(hub, data):
    """A byte now and then keeps nobody waiting for ever: it is no silence, but no message."""
    with unharmed(hub) as witness:
        user = f"trickling-{next(numbers)}"
        peer = Peer.connect(hub.port, fields=DEFLATE, user=user)
        bytes_left = iter(data)
        with now_and_then(lambda: peer.sock.send(bytes((next(bytes_left),)))):
            until(lambda: hub.ask("held")["begun"] == 1, "the beginning")
            witness.is_answered()
            until(lambda: heard(hub, user), "the end")

        assert ended(peer) == (1008, "policy_violation")


def test_who_falls_silent_in_the_middle_of_a_message_is_told_to_come_back(hub):
    """It may have lost the network: 4408, and not 1008."""
    with unharmed(hub):
        peer = Peer.connect(hub.port, keep=False, user="half")
        peer.write(framed(b"x" * 4000)[:2000])
        until(lambda: heard(hub, "half"), "noticing")
        peer.close()

        assert heard(hub, "half") == "heartbeat_timeout"


# --- not reading


def stall(hub: HubProcess, user: str) -> Peer:
    """A client that does not read, and for which messages wait."""
    peer = Peer.connect(hub.port, buffer=4096, keep=False, user=user, rooms=user)
    until(lambda: hub.noted("join", user), "joining")
    sent = 0
    while not hub.ask("queued", user=user):
        assert sent < 20_000
        hub.ask("publish", room=user, first=sent, count=100, pad=1000)
        sent += 100
    return peer


def test_who_pings_and_never_reads_is_cut_off(hub):
    """Its pings are life, but its pongs pile up only as far as a bound."""
    with unharmed(hub) as witness:
        peer = stall(hub, "pinging")
        peer.write(framed(b"x" * 125, PING) * 150)
        ping = framed(b"x" * 125, PING)
        with now_and_then(lambda: peer.write(ping)):
            witness.is_answered()
            until(lambda: heard(hub, "pinging"), "the end")
            until(lambda: hub.ask("links") == 1, "giving up")

        assert heard(hub, "pinging") == "slow_consumer"
        peer.close()


def test_who_floods_with_pings_and_never_reads_is_cut_off(hub):
    with unharmed(hub) as witness:
        peer = Peer.connect(hub.port, buffer=4096, keep=False, user="flooding")
        peer.write(framed(b"x" * 125, PING) * 10_000)
        witness.is_answered()
        until(lambda: heard(hub, "flooding"), "the end")
        until(lambda: hub.ask("links") == 1, "giving up")

        assert heard(hub, "flooding") == "policy_violation"
        peer.close()


def test_who_reads_a_byte_now_and_then_is_cut_off(hub):
    """The kernel opens no window for so little: no write makes any progress."""
    with unharmed(hub) as witness:
        peer = stall(hub, "sipping")
        rss = hub.rss
        with now_and_then(lambda: peer.read(1)):
            for n in range(20):
                hub.ask("publish", room="sipping", first=n * 100, count=100, pad=1000)
            witness.is_answered()
            until(lambda: heard(hub, "sipping"), "the end")
            until(lambda: hub.ask("links") == 1, "giving up")

        assert heard(hub, "sipping") == "slow_consumer"
        assert hub.rss - rss < GROWTH
        peer.close()


def test_a_half_closed_socket_is_the_end_of_the_connection(hub):
    """What it has asked for before is not kept for it: nobody can say whether it reads."""
    with unharmed(hub):
        peer = Peer.connect(hub.port, user="half-closed")
        peer.write(framed(b"x" * 4000)[:2000])
        peer.sock.shutdown(socket.SHUT_WR)
        ended(peer)

        until(lambda: heard(hub, "half-closed"), "the end")
        assert heard(hub, "half-closed") == "connection_lost"


def test_a_socket_half_closed_while_it_is_stalled_does_not_stay(hub):
    with unharmed(hub):
        peer = stall(hub, "half-stalled")
        peer.sock.shutdown(socket.SHUT_WR)
        until(lambda: heard(hub, "half-stalled"), "the end")
        until(lambda: hub.ask("links") == 1, "giving up")
        peer.close()


# --- the handshake

ASKING = request({"user": "slow"})


def refused(answer: bytes) -> bool:
    """Whether this is no answer at all, or says that it was the client's fault."""
    return not answer or answer.startswith(b"HTTP/1.1 4")


def answer(sock: socket.socket) -> bytes:
    found = b""
    try:
        while part := sock.recv(4096):
            found += part
    except ConnectionError:
        pass
    return found


def test_a_slow_handshake_is_not_waited_for(hub):
    with unharmed(hub) as witness:
        peers = [Peer.dial(hub.port) for _ in range(20)]
        bytes_left = iter(ASKING)

        def trickle() -> None:
            byte = bytes((next(bytes_left),))
            for peer in peers:
                try:
                    peer.sock.send(byte)
                except OSError:
                    pass  # it was ended, which is the point

        with now_and_then(trickle, every=0.1 * UNIT):
            witness.is_answered()
            found = [answer(peer.sock) for peer in peers]
            witness.is_answered()

        assert all(map(refused, found))
        assert not hub.noted("connect", "slow")
        for peer in peers:
            peer.close()


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * 100) for n in range(1000)),
        b"X: " + b"x" * MIB + b"\r\n",
        b"X" * MIB,
        b"X: x\r\n" + b" folded\r\n" * 100_000,
    ],
    ids=["a thousand headers", "a header of a MiB", "a name without an end", "folded for ever"],
)
def test_a_handshake_with_too_much_in_it_is_refused(hub, headers):
    with unharmed(hub) as witness:
        peer = Peer.dial(hub.port)
        try:
            peer.sock.sendall(ASKING[:-2] + headers + b"\r\n")
        except OSError:
            pass  # it was not even read to its end
        witness.is_answered()

        assert refused(answer(peer.sock))
        assert not hub.noted("connect", "slow")
        peer.close()


def test_what_comes_with_the_handshake_is_bounded_as_everything_is(hub):
    """The bytes behind the request are the first frames."""
    with unharmed(hub):
        peer = Peer.dial(hub.port)
        peer.sock.sendall(ASKING + framed(b"x" * (LIMIT + 1)))
        found = answer(peer.sock)

        assert found.startswith(b"HTTP/1.1 101")
        assert found.endswith((1009).to_bytes(2, "big") + b"message_too_big")
        peer.close()
        until(lambda: hub.ask("links") == 1, "the end", WITHIN)
