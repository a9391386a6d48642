"""One client sends more than anybody could handle; the others do not suffer for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.faults.clients import Crowd, Peer
from tests.faults.support import MIB, UNIT, HubProcess

pytestmark = pytest.mark.usefixtures("transport")

POLITE = 50
REQUESTS = 20
FLOOD = 30_000
LANE = 64
GROWTH = 8 * MIB
"""Bytes that the server may grow by."""

TAKE = {"seconds": 0.001}


class Asker:
    """Sends its next request when the last one was answered."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.asked = 0

    def go_on(self) -> bool:
        """Ask if it is time to; True when it is through."""
        if len(self.peer.answers) == self.asked:
            if self.asked == REQUESTS:
                return True
            self.peer.ask(str(self.asked), "work:nap", TAKE)
            self.asked += 1
        return False


def through(askers: list[Asker]) -> bool:
    """Let each go on; True when all are through."""
    return sum(asker.go_on() for asker in askers) == len(askers)


def serve(tmp_path: Any) -> HubProcess:
    return HubProcess(tmp_path, options={"workers": 8, "lane_queue": LANE, "worker_queue": 512})


def flood(peer: Peer, count: int, *, first: int = 0) -> None:
    """Send tiny requests, as fast as they go."""
    for n in range(first, first + count):
        peer.ask(str(n), "work:nap", TAKE)


def test_the_polite_ones_get_their_acks_and_the_flooder_its_refusals(tmp_path):
    with (
        serve(tmp_path) as hub,
        Crowd([Peer.connect(hub.port) for _ in range(POLITE)]) as crowd,
    ):
        askers = [Asker(peer) for peer in crowd]
        flooder = crowd.add(Peer.connect(hub.port, user="flooder"))
        before = hub.rss
        sent = 0

        def all_through() -> bool:
            nonlocal sent
            if sent < FLOOD and flooder.flush():
                flood(flooder, 200, first=sent)
                sent += 200
            return through(askers)

        crowd.until(all_through, "the polite ones", within=60 * UNIT)
        overlapped = sent
        crowd.until(lambda: len(flooder.messages) == sent, "the flooder", within=60 * UNIT)

        assert overlapped >= 5000
        assert all(set(asker.peer.answers.values()) == {"ok"} for asker in askers)
        counts = Counter(flooder.answers.values())
        assert counts.keys() == {"ok", "overloaded"}
        assert counts["ok"] >= LANE
        assert counts["overloaded"] > sent / 2
        assert hub.rss - before < GROWTH
        assert hub.complaints == []


def test_a_flooder_that_does_not_read_its_answers_is_not_read_either(tmp_path):
    """Its socket fills up, and that is where the flood ends."""
    with (
        serve(tmp_path) as hub,
        Crowd([Peer.connect(hub.port) for _ in range(POLITE)]) as crowd,
        Peer.connect(hub.port, user="flooder", buffer=4096) as flooder,
    ):
        askers = [Asker(peer) for peer in crowd]
        before = hub.rss
        sent = 0
        while flooder.flush():
            flood(flooder, 200, first=sent)
            sent += 200
            crowd.pump(0)
            assert sent < 400_000

        crowd.until(lambda: through(askers), "the polite ones")

        assert hub.rss - before < GROWTH
        reader = crowd.add(flooder)
        crowd.until(lambda: len(reader.messages) >= sent - _dropped(hub), "the rest")
        assert len(reader.answers) == sent - _dropped(hub)
        assert hub.complaints == []


def _dropped(hub: HubProcess) -> int:
    return int(hub.ask("stats")["drops"])


def test_acks_for_the_server_are_settled_though_the_lane_is_full(tmp_path):
    """They never wait behind requests: a handler may be waiting for one."""
    with serve(tmp_path) as hub, Crowd([Peer.connect(hub.port, user="flooder")]) as crowd:
        (flooder,) = crowd
        flooder.ask("held", "work:gate", {"gate": "later"})
        flood(flooder, 500)
        crowd.until(lambda: len(flooder.answers) == 500 - LANE, "filling the lane")

        acked: set[str] = set()

        def answer() -> bool:
            for message in flooder.messages:
                if message["topic"] == "asked" and message["id"] not in acked:
                    flooder.send(topic="asked", event="ack", ref=message["id"])
                    acked.add(message["id"])
            return len(acked) == 100

        hub.tell("emit", user="flooder", count=100, timeout=20 * UNIT)
        crowd.until(answer, "being asked")

        assert hub.answer("emit") == {"expected": 100, "received": 100}
        assert len(flooder.answers) == 500 - LANE
        hub.ask("open", gate="later")
        crowd.until(lambda: len(flooder.answers) == 501, "the lane")
        assert hub.complaints == []


def test_the_bound_on_all_lanes_together_refuses_and_then_lets_in_again(tmp_path):
    """Many flood at once; everybody gets every answer, and afterwards all is well."""
    with (
        serve(tmp_path) as hub,
        Crowd([Peer.connect(hub.port) for _ in range(20)]) as crowd,
    ):
        for peer in crowd:
            flood(peer, 500)
        crowd.until(lambda: all(len(peer.messages) == 500 for peer in crowd), "the answers")
        for peer in crowd:
            peer.ask("last", "work:echo")
        crowd.until(lambda: all(len(peer.messages) == 501 for peer in crowd), "the last one")

        counts = Counter(value for peer in crowd for value in peer.answers.values())
        assert counts.keys() == {"ok", "overloaded"}
        assert all(peer.answers["last"] == "ok" for peer in crowd)
        assert hub.ask("stats")["drops"] == 0
        assert hub.complaints == []
