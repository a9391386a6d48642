"""Whose turn it is, by order and count: the server is stopped, and finds all at once when it
goes on. What is asserted is who came after how many, never how long anything took."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eyewall.adapters.web.protocol.parser import MESSAGES_PER_FEED as MESSAGES
from eyewall.adapters.web.sockets.batch import WRITES_PER_SLICE as WRITES
from tests.faults.clients import PING, Crowd, Peer, framed
from tests.faults.support import HubProcess, until

MEMBERS = 3000
LANE = 64
BUDGET = 512
"""Messages in a batch: a quarter of the server's ``worker_queue``."""

CHUNK = 64 * 1024
"""Bytes that the server reads at a time. So many of each flood wait when it goes on."""

REQUEST = framed(b'{"id":"1","topic":"work:count","data":null,"ack":true}')
GARBAGE = framed(b"x")
ACK = framed(b'{"topic":"t","event":"ack","ref":"nobody"}')


@contextmanager
def stopped(hub: HubProcess) -> Iterator[None]:
    hub.signal(signal.SIGSTOP)
    until(lambda: is_stopped(hub), "stopping")
    yield
    hub.signal(signal.SIGCONT)


def is_stopped(hub: HubProcess) -> bool:
    stat = Path(f"/proc/{hub.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def allow_many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.parametrize("flooders", [1, 100])
@pytest.mark.parametrize("message", [GARBAGE, ACK, REQUEST], ids=["garbage", "acks", "requests"])
def test_a_request_is_answered_when_every_flooder_had_two_slices_at_most(
    tmp_path, message, flooders
):
    """Each flooder has thousands of messages in the server's sockets, and came first."""
    flood = message * (CHUNK // len(message))
    with HubProcess(tmp_path, options={"worker_queue": 4 * BUDGET, "lane_queue": LANE}) as hub:
        crowd = Crowd([Peer.connect(hub.port, keep=False) for _ in range(flooders)])
        with crowd, Peer.connect(hub.port) as quiet:
            with stopped(hub):
                for flooder in crowd:
                    flooder.write(flood)
                quiet.ask("only", "work:count")
            with crowd.attentive():
                until(lambda: quiet.read() and quiet.answers, "the answer")

        (answer,) = quiet.messages
        assert answer["event"] == "ack"
        assert answer["data"]["result"] <= 2 * (MESSAGES * flooders + BUDGET + MESSAGES)
        assert hub.complaints == []


def test_a_ping_is_answered_in_the_middle_of_a_fan_out(tmp_path):
    """It comes when the first hundred have been written to; the others have not by then."""
    allow_many_descriptors()
    options = {
        "max_connections_per_address": MEMBERS + 1,
        # No ping of the server's own is among the writes, however long connecting takes.
        "heartbeat": {"interval": 600.0, "pong_timeout": 1200.0},
    }
    with HubProcess(tmp_path, options=options) as hub:
        members = Crowd([Peer.connect(hub.port, user=f"m{n}", rooms="lab") for n in range(MEMBERS)])
        with members, Peer.connect(hub.port, user="quiet") as quiet:
            until(lambda: hub.ask("stats")["connections"] > MEMBERS, "connecting")
            until(lambda: sum(n[0] == "join" for n in hub.notes) == MEMBERS, "joining")
            hub.ask("watch_writes", stop_at=100)
            hub.tell("publish", room="lab", first=0, count=1, pad=100)
            until(lambda: is_stopped(hub), "the hundredth")
            quiet.write(framed(b"now", PING))
            hub.signal(signal.SIGCONT)
            members.until(lambda: all(m.messages for m in members), "everybody")
            assert hub.answer("publish") == MEMBERS

            written = hub.ask("written")
            assert sorted(written) == sorted(["quiet", *(f"m{n}" for n in range(MEMBERS))])
            assert written.index("quiet") <= 100 + 2 * WRITES


def test_a_flooder_fills_its_own_lane_and_nobody_elses(tmp_path):
    """Its requests wait for each other; others are answered meanwhile, all of them."""
    options = {"workers": 2, "worker_queue": 4 * LANE, "lane_queue": LANE}
    with (
        HubProcess(tmp_path, options=options) as hub,
        Crowd([Peer.connect(hub.port) for _ in range(20)]) as crowd,
    ):
        flooder, *others = crowd
        for n in range(500):
            flooder.ask(str(n), "work:gate", {"gate": "later"})
        crowd.until(lambda: len(flooder.answers) == 500 - 1 - LANE, "the refusals")
        for n in range(3):
            for peer in others:
                peer.ask(str(n), "work:echo")
            crowd.until(lambda n=n: all(len(p.answers) > n for p in others), "the others")

        assert set(flooder.answers.values()) == {"overloaded"}
        assert all(set(peer.answers.values()) == {"ok"} for peer in others)
        hub.ask("open", gate="later")
        crowd.until(lambda: len(flooder.answers) == 500, "the lane")
        assert hub.complaints == []
