"""The load generator's other ways: a steady rate, pings, deflate, TLS, Socket.IO."""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Callable, Iterable

import pytest

from tests.performance.loadgen_support import (
    HEADER,
    Behaviour,
    frame,
    published,
    publisher,
    unmasked,
)
from tests.performance.processes import RunFailed
from tests.performance.sample import longest, percentile

DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"
ALONE = b"; server_no_context_takeover"

# --- at a steady rate


def test_the_time_from_an_order_to_its_arrival_is_noted(run):
    """The publisher holds everything back for 30 ms."""

    def late(client: socket.socket, orders: Iterable[str]) -> None:
        for order in orders:
            first, _, fill = map(int, order.split())
            time.sleep(0.03)
            client.sendall(published(first, fill))

    sample = run("latency", late)

    assert sample.operations == sum(count for _, count in sample.histogram) > 0
    assert 0.03 <= percentile([sample], 0.01) <= longest([sample])


def test_ids_that_grow_while_messages_are_on_their_way_change_no_size(run):
    """What a message needs besides its padding is known by what it was padded with itself.

    Here each is sent when the twelfth after it has been ordered, and the ids grow once.
    """
    before, measured = 3, 31  # rehearsed and to warm up; at 100 a second

    def growing(client: socket.socket, orders: Iterable[str]) -> None:
        waiting: list[bytes] = []
        for number, order in enumerate(orders, 1):
            first, _, fill = map(int, order.split())
            longer = 7 if number > before else 0
            waiting.append(published(first, fill + longer))
            behind = 12 if before < number < before + measured else 0
            while len(waiting) > behind:
                client.sendall(waiting.pop(0))

    assert run("latency", growing, seconds=0.3).operations == measured


def test_a_message_that_does_not_arrive_has_no_latency(run):
    def forgetful(client: socket.socket, orders: Iterable[str]) -> None:
        for number, order in enumerate(orders):
            first, _, fill = map(int, order.split())
            if number != 3:
                client.sendall(published(first, fill))

    with pytest.raises(RunFailed, match="got message"):
        run("latency", forgetful)


# --- pings meanwhile


def ponger(answer: Callable[[bytes], bytes]) -> Behaviour:
    """Waits for a ping before it publishes, but for the rehearsal."""

    def behave(client: socket.socket, orders: Iterable[str]) -> None:
        frames = client.makefile("rb")
        for number, order in enumerate(orders):
            first, _, fill = map(int, order.split())
            if number >= 2:
                client.sendall(answer(unmasked(frames.read(HEADER + len("p1000000000")))))
            client.sendall(published(first, fill))

    return behave


def test_answered_pings_get_a_figure(run):
    sample = run("ping", ponger(lambda ping: frame(ping, 0x8A)))

    assert sum(count for _, count in sample.histogram) == sample.operations > 0
    assert longest([sample]) > 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda ping: frame(b"p1000000007", 0x8A), id="another-ping"),
        pytest.param(lambda ping: frame(b"", 0x8A), id="an-empty-one"),
        pytest.param(lambda ping: 2 * frame(ping, 0x8A), id="twice"),
    ],
)
def test_a_pong_that_is_not_the_pings_gets_none(run, answer):
    with pytest.raises(RunFailed, match="got pong"):
        run("ping", ponger(answer))


# --- permessage-deflate, TLS, and another protocol on top


def compressor(takeover: bool, spoil: Callable[[bytes], bytes] = lambda piece: piece) -> Behaviour:
    def behave(client: socket.socket, orders: Iterable[str]) -> None:
        stream = zlib.compressobj(wbits=-15)
        for order in orders:
            first, count, fill = map(int, order.split())
            for i in range(count):
                stream = stream if takeover else zlib.compressobj(wbits=-15)
                message = published(first + i, fill)[2:]
                piece = stream.compress(message) + stream.flush(zlib.Z_SYNC_FLUSH)
                client.sendall(frame(spoil(piece[:-4]), 0xC1))

    return behave


@pytest.mark.parametrize(
    ("headers", "takeover"),
    [
        pytest.param(DEFLATE + ALONE + b"\r\n", False, id="each-alone"),
        pytest.param(DEFLATE + b"\r\n", True, id="one-stream"),
    ],
)
def test_compressed_messages_are_inflated_and_checked(run, headers, takeover):
    assert run("fanout", compressor(takeover), headers, deflate=True).deliveries > 0


@pytest.mark.parametrize(
    ("behave", "headers", "complaint"),
    [
        pytest.param(
            compressor(takeover=True), DEFLATE + ALONE + b"\r\n", "can't be inflated", id="a-lie"
        ),
        pytest.param(
            compressor(takeover=False, spoil=lambda piece: b"\xff" + piece),
            DEFLATE + ALONE + b"\r\n",
            "can't be inflated",
            id="spoilt",
        ),
        pytest.param(compressor(takeover=False), b"", "was not accepted", id="not-accepted"),
        pytest.param(
            publisher(lambda frames: frames),
            DEFLATE + b"\r\n",
            "nothing came compressed",
            id="plain",
        ),
    ],
)
def test_what_is_not_compressed_as_agreed_gets_none(run, behave, headers, complaint):
    with pytest.raises(RunFailed, match=complaint):
        run("fanout", behave, headers, deflate=True)


def test_a_fan_out_over_tls_gets_a_figure(run):
    assert run("fanout", publisher(lambda frames: frames), tls=True).deliveries > 0


def test_a_fan_out_over_tls_is_checked_alike(run):
    with pytest.raises(RunFailed, match="got message"):
        run("fanout", publisher(lambda f: [f[0], f[0], *f[1:]]), tls=True)


def test_socketio_lets_in_before_it_counts_as_connected(run):
    def engine(client: socket.socket, orders: Iterable[str]) -> None:
        frames = client.makefile("rb")
        client.sendall(frame(b'0{"sid":"s"}'))
        assert unmasked(frames.read(HEADER + 2)) == b"40"
        client.sendall(frame(b'40{"sid":"t"}') + frame(b"2"))
        assert unmasked(frames.read(HEADER + 1)) == b"3"
        for order in orders:
            first, count, fill = map(int, order.split())
            for i in range(count):
                client.sendall(frame(b"42" + published(first + i, fill)[2:]))

    assert run("fanout", engine, socketio=True).deliveries > 0
