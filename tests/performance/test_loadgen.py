"""The load generator believes nothing: what did not arrive as it should makes no figure."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.performance.loadgen_support import (
    HEADER,
    SIZE,
    Behaviour,
    frame,
    published,
    publisher,
    unmasked,
)
from tests.performance.processes import RunFailed

# --- a fan-out: each round of four messages goes through ``misbehave``


def test_a_faithful_publisher_gets_a_figure(run):
    sample = run("fanout", publisher(lambda frames: frames))

    assert sample.deliveries == 4 * sample.operations > 0
    assert sample.server_cpu > 0


def test_frames_may_arrive_in_pieces(run):
    """Half a frame, even half a header, waits for its other half."""

    def in_pieces(frames: list[bytes]) -> Iterator[bytes]:
        stream = b"".join(frames)
        for cut in (1, 30, len(frames[0]) + 3):
            yield stream[:cut]
            time.sleep(0.002)
            stream = stream[cut:]
        yield stream

    assert run("fanout", publisher(in_pieces)).deliveries > 0


@pytest.mark.parametrize(
    ("misbehave", "complaint"),
    [
        pytest.param(lambda f: [f[0], f[2], f[3]], "got message", id="a-gap"),
        pytest.param(lambda f: [f[0], f[0], *f[1:]], "got message", id="a-repeat"),
        pytest.param(lambda f: [f[1], f[0], *f[2:]], "got message", id="wrong-order"),
        pytest.param(lambda f: f[:3], "not everything arrived", id="one-too-few"),
        pytest.param(lambda f: [*f[:3], published(5, 0)], "got message", id="something-else"),
        pytest.param(lambda f: [*f[:3], b"\x88\x02\x03\xf4"], "closed connection", id="a-close"),
        pytest.param(lambda f: [*f[:3], b"\x82\x01x"], "unexpected frame", id="binary"),
    ],
)
def test_a_fan_out_that_is_not_as_it_should_be_gets_none(run, misbehave, complaint):
    with pytest.raises(RunFailed, match=complaint):
        run("fanout", publisher(misbehave))


def test_messages_of_another_size_are_another_benchmark(run):
    def longer(client: socket.socket, orders: Iterable[str]) -> None:
        for order in orders:
            first, count, fill = map(int, order.split())
            for i in range(count):
                client.sendall(published(first + i, fill + (20 if count > 1 else 0)))

    with pytest.raises(RunFailed, match=f"a message of 120 bytes instead of {SIZE}"):
        run("fanout", longer)


def test_messages_that_can_not_be_so_short_are_named(run):
    with pytest.raises(RunFailed, match="a message takes 27 bytes without padding"):
        run("fanout", publisher(lambda frames: frames), size=20)


# --- requests, alone or in a chat: what is sent back goes through ``misbehave``


def answerer(misbehave: Callable[[dict], Iterable[dict]]) -> Behaviour:
    def behave(client: socket.socket, orders: Iterable[str]) -> None:
        frames = client.makefile("rb")
        while asked := unmasked(frames.read(HEADER + SIZE)):
            for answer in misbehave(json.loads(asked)):
                client.sendall(frame(json.dumps(answer, separators=(",", ":")).encode()))

    return behave


def ack(asked: dict, **changes: str) -> dict:
    return {"ref": asked["id"], "event": "ack", "status": "ok", **changes}


def said(asked: dict, **changes: str) -> dict:
    return {"from": "u000000", "text": asked["data"]["text"], **changes}


def test_answered_requests_get_a_figure(run):
    assert run("request", answerer(lambda asked: [ack(asked)])).operations > 0


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(lambda asked: [ack(asked, status="nack")], id="refused"),
        pytest.param(lambda asked: [ack(asked, ref="1000000007")], id="another-request"),
        pytest.param(lambda asked: [ack(asked), ack(asked)], id="twice"),
        pytest.param(lambda asked: [said(asked)], id="no-answer"),
    ],
)
def test_a_request_that_is_not_answered_as_it_should_be_gets_none(run, misbehave):
    with pytest.raises(RunFailed, match="connection 0 got"):
        run("request", answerer(misbehave))


def test_a_chat_that_is_heard_gets_a_figure(run):
    sample = run("chat", answerer(lambda asked: [said(asked), ack(asked)]))

    assert sample.operations > 0
    assert abs(sample.deliveries - sample.operations) <= 1


@pytest.mark.parametrize(
    ("misbehave", "complaint"),
    [
        pytest.param(lambda asked: [ack(asked)], "did not hear all", id="unheard"),
        pytest.param(lambda asked: [said(asked), said(asked), ack(asked)], "got", id="twice"),
        pytest.param(lambda asked: [said(asked, **{"from": "u000001"})], "got", id="another-room"),
    ],
)
def test_a_chat_that_is_not_heard_as_it_should_be_gets_none(run, misbehave, complaint):
    with pytest.raises(RunFailed, match=complaint):
        run("chat", answerer(misbehave))
