"""SIGTERM under traffic: whatever was due arrives, and the process ends in time."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from eyewall.server.runner import DEBOUNCE
from tests.faults.clients import Crowd, Peer, request
from tests.faults.support import UNIT, WITHIN, HubProcess, assert_pairs, until

DEADLINE = 3.0 * UNIT
MARGIN = 7.0 * UNIT
"""Seconds that leaving the cluster and the interpreter may take on top of it, also where other
tests use the same cores."""
ENOUGH = DEADLINE + MARGIN

LATE = 60.0 * UNIT
"""A deadline for servers that are through long before, however busy the machine is."""

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])


def serve(tmp_path: Any, **like: Any) -> HubProcess:
    return HubProcess(tmp_path, **{"deadline": DEADLINE, **like})


def ended(crowd: Crowd) -> bool:
    return all(peer.end for peer in crowd)


def assert_goodbye(peer: Peer) -> None:
    """It was told when to come back, and why it was closed, and was not cut off."""
    assert len(peer.of("system:draining")) == 1
    assert peer.closed == (1012, "server_shutdown")
    assert peer.end == "eof"
    assert not peer.torn


class Talker:
    """Keeps a few requests under way, until it is told that the server goes."""

    def __init__(self, peer: Peer, *, polite: bool = True) -> None:
        self.peer = peer
        self.polite = polite
        self.asked = 0

    @property
    def told(self) -> bool:
        return bool(self.peer.of("system:draining"))

    def talk(self) -> None:
        if self.peer.closed or self.peer.end or (self.polite and self.told):
            return
        while self.asked - len(self.peer.answers) < 5:
            self.peer.ask(f"{self.asked:06}", "work:nap", {"seconds": 0.002 * (self.asked % 5)})
            self.asked += 1


@BOTH
def test_every_request_is_answered_before_the_close(tmp_path, number):
    """Those in work with their result, those that came too late with ``overloaded``."""
    with (
        serve(tmp_path, deadline=LATE) as hub,
        Crowd(
            Peer.connect(hub.port, user=f"u{n}", rooms="lab", session=True) for n in range(20)
        ) as crowd,
    ):
        talkers = [Talker(peer, polite=n % 4 != 0) for n, peer in enumerate(crowd)]
        slow = crowd.add(Peer.connect(hub.port, user="slow", session=True))
        slow.ask("slow", "work:gate", {"gate": "slow"})
        crowd.until(lambda: all(len(t.peer.answers) > 20 for t in _turn(talkers)), "traffic")
        before = time.monotonic()

        hub.signal(number)
        crowd.until(lambda: all(t.told for t in _turn(talkers)), "draining")
        _assert_closed_for_new_ones(hub)
        hub.ask("open", gate="slow")
        crowd.until(lambda: _turn(talkers) and ended(crowd), "the end")

        assert hub.exited(LATE) == 0
        assert time.monotonic() - before < LATE / 2
        assert slow.answers == {"slow": "ok"}
        for talker in talkers:
            _assert_answered(talker)
        for peer in crowd:
            assert_goodbye(peer)
        waits = [peer.of("system:draining")[0]["reconnect_in"] for peer in crowd]
        assert len(set(waits)) == len(waits)  # nobody comes back together
        assert max(waits) - min(waits) > 1
        assert_pairs(hub.notes)
        reasons = [line[-1] for line in hub.notes if line[0] == "disconnect"]
        assert reasons == ["server_shutdown"] * len(crowd.peers)
        assert hub.complaints == []


def _turn(talkers: list[Talker]) -> list[Talker]:
    for talker in talkers:
        talker.talk()
    return talkers


def _assert_closed_for_new_ones(hub: HubProcess) -> None:
    refused = hub.knock()
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert hub.get("/readyz").status == 503
    assert hub.get("/healthz").status == 200


def _assert_answered(talker: Talker) -> None:
    """Only who goes on asking although it was told may find some unanswered: the last ones."""
    answers = talker.peer.answers
    assert set(answers.values()) <= {"ok", "overloaded"}
    if talker.polite:
        assert len(answers) == talker.asked
    else:
        assert sorted(answers) == [f"{n:06}" for n in range(len(answers))]
        assert "overloaded" in answers.values()


def test_a_burst_that_came_just_before_is_answered_to_the_last(tmp_path):
    """Also where the server has read more than it has looked at."""
    with serve(tmp_path) as hub, Crowd([Peer.connect(hub.port)]) as crowd:
        (peer,) = crowd
        for n in range(3000):
            peer.ask(str(n), "work:echo", n)
        crowd.until(peer.flush, "sending")

        hub.signal(signal.SIGTERM)
        crowd.until(lambda: ended(crowd), "the end")

        assert len(peer.answers) == 3000
        assert set(peer.answers.values()) == {"ok", "overloaded"}
        assert_goodbye(peer)
        assert hub.exited(ENOUGH) == 0


def test_an_ack_that_the_server_waits_for_still_counts(tmp_path):
    with (
        serve(tmp_path, deadline=LATE) as hub,
        Crowd([Peer.connect(hub.port, user="ada")]) as crowd,
    ):
        (peer,) = crowd
        hub.ask("emit_later", user="ada")
        crowd.until(lambda: len(peer.of("asked")) == 3, "being asked")

        hub.signal(signal.SIGTERM)
        crowd.until(lambda: peer.of("system:draining"), "draining")
        assert peer.end is None
        for message in [m for m in peer.messages if m["topic"] == "asked"]:
            peer.send(topic="asked", event="ack", ref=message["id"])
        before = time.monotonic()
        crowd.until(lambda: ended(crowd), "the end")

        assert time.monotonic() - before < LATE / 2
        assert_goodbye(peer)
        assert hub.exited(LATE) == 0


@pytest.mark.parametrize("work", ["gate", "stubborn", "thread"])
def test_a_handler_that_never_ends_is_cut_at_the_deadline(tmp_path, work):
    """Its request is answered too, so that the client may ask another node."""
    with serve(tmp_path) as hub, Crowd([Peer.connect(hub.port, user="ada")]) as crowd:
        (peer,) = crowd
        peer.ask("first", f"work:{work}", {"gate": "never"})
        peer.ask("second", "work:echo")
        until(lambda: any(line[0] == "working" for line in hub.notes), "work")
        before = time.monotonic()

        hub.signal(signal.SIGTERM)
        crowd.until(lambda: ended(crowd), "the end")

        assert hub.exited(ENOUGH) == 0
        assert time.monotonic() - before > DEADLINE / 2
        assert_goodbye(peer)
        assert_pairs(hub.notes)
        assert peer.answers == {"first": "overloaded", "second": "overloaded"}


@BOTH
@pytest.mark.parametrize("work", ["gate", "block"])
def test_a_second_signal_ends_at_once(tmp_path, number, work):
    """Also while a handler blocks the whole loop."""
    with serve(tmp_path, deadline=LATE) as hub, Peer.connect(hub.port) as peer:
        peer.ask("1", f"work:{work}", {"gate": "never"})
        until(lambda: any(line[0] == "working" for line in hub.notes), "work")
        before = time.monotonic()

        hub.signal(number)
        if work == "gate":
            crowd = Crowd([peer])
            crowd.until(lambda: peer.of("system:draining"), "draining")
        else:
            until(lambda: _caught(hub, number), "taking the first")
        time.sleep(DEBOUNCE[number])  # sooner it would be the same one
        hub.signal(number)

        assert hub.exited(LATE) == 128 + number
        assert time.monotonic() - before < LATE / 2


def _caught(hub: HubProcess, number: int) -> bool:
    """Whether the process has taken the signal: two pending ones of a kind are one."""
    lines = Path(f"/proc/{hub.pid}/status").read_text().splitlines()
    pending = [line.split()[1] for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return not any(int(mask, 16) & 1 << (number - 1) for mask in pending)


def test_a_client_that_never_reads_does_not_hold_up_the_exit(tmp_path):
    with (
        serve(tmp_path, options={"queue": {"size": 64}}) as hub,
        Peer.connect(hub.port, user="stalled", rooms="lab", buffer=4096),
        Crowd([Peer.connect(hub.port, rooms="lab")]) as crowd,
    ):
        reader = crowd.peers[0]
        sent = 0
        while not hub.ask("queued", user="stalled"):
            hub.ask("publish", room="lab", first=sent, count=40, pad=1000)
            sent += 40
            crowd.until(lambda n=sent: len(reader.of("news")) == n, "reading")

        hub.signal(signal.SIGTERM)
        crowd.until(lambda: ended(crowd), "the end")

        assert hub.exited(ENOUGH) == 0
        assert_goodbye(reader)
        assert_pairs(hub.notes)


def test_an_idle_server_ends_at_once(tmp_path):
    with serve(tmp_path, deadline=LATE) as hub, Crowd([Peer.connect(hub.port)]) as crowd:
        before = time.monotonic()

        hub.signal(signal.SIGTERM)
        crowd.until(lambda: ended(crowd), "the end")
        crowd.peers[0].close()

        assert hub.exited(LATE) == 0
        assert time.monotonic() - before < LATE / 2
        assert_goodbye(crowd.peers[0])


def test_hooks_that_never_end_do_not_hold_up_the_exit(tmp_path):
    """Neither one of a connect nor one of a disconnect, which may ignore its cancellation."""
    with serve(tmp_path) as hub:
        peers = [
            Peer.connect(hub.port, user="coming", connect="never"),
            Peer.connect(hub.port, user="going", disconnect="never"),
            Peer.connect(hub.port, user="deaf", disconnect="deaf"),
            Peer.connect(hub.port, user="ada"),
        ]
        with Crowd(peers) as crowd:
            until(lambda: all(hub.noted("connect", u) for u in ("coming", "going", "deaf", "ada")))

            hub.signal(signal.SIGTERM)
            crowd.until(lambda: ended(crowd), "the end")

            assert hub.exited(ENOUGH) == 0
            for peer in crowd:
                assert peer.closed == (1012, "server_shutdown")
            assert hub.noted("disconnect", "going")
            assert hub.noted("disconnect", "ada")


def test_who_is_in_the_middle_of_its_handshake_does_not_get_in(tmp_path):
    """It had begun before the drain, and would be let in after all were told of it."""
    with serve(tmp_path) as hub, Peer.connect(hub.port, user="ada") as ada, Crowd([ada]) as crowd:
        with socket.create_connection(("127.0.0.1", hub.port), WITHIN) as late:
            late.sendall(request({"user": "late", "auth": "slow"}))
            until(lambda: hub.noted("auth", "late"), "knocking")
            ada.ask("1", "work:gate", {"gate": "slow"})
            until(lambda: any(line[0] == "working" for line in hub.notes), "work")

            hub.signal(signal.SIGTERM)
            crowd.until(lambda: ada.of("system:draining"), "draining")
            hub.ask("open", gate="slow")

            assert late.recv(4096).startswith(b"HTTP/1.1 503")
        crowd.until(lambda: ended(crowd), "the end")
        assert hub.exited(ENOUGH) == 0
        assert not hub.noted("connect", "late")
