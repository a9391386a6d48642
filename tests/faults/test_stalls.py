"""A server that stood still ends nobody who did nothing wrong, and everybody who is gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.clients import PING, PONG, Crowd, Peer, framed, request
from tests.faults.support import UNIT, HubProcess, until

pytestmark = pytest.mark.usefixtures("transport")

CLIENTS = 100
"""More than are read in one turn of the loop."""

INTERVAL, PONG_TIMEOUT, STALL = 0.3 * UNIT, 1.0 * UNIT, 1.6 * UNIT


@pytest.fixture(scope="module")
def hub(transport, tmp_path_factory) -> Iterator[HubProcess]:
    """It has less patience than the stalls take."""
    options = {
        "heartbeat": {"interval": INTERVAL, "pong_timeout": PONG_TIMEOUT, "write_wait": UNIT},
        "handshake_timeout": UNIT,
    }
    with HubProcess(tmp_path_factory.mktemp("stalls"), options=options) as hub:
        yield hub


class Slow(Peer):
    """It thinks about each ping before it answers."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.asked: list[tuple[float, bytes]] = []

    def _take(self, first: int, payload: bytes) -> None:
        if first == 0x80 | PING:
            self.asked.append((time.monotonic(), payload))
        else:
            super()._take(first, payload)

    def flush(self) -> bool:
        while self.asked and time.monotonic() - self.asked[0][0] > 0.5 * PONG_TIMEOUT:
            self._unsent += framed(self.asked.pop(0)[1], PONG)
        return super().flush()


@pytest.fixture(scope="module")
def clients(hub) -> Iterator[Crowd]:
    """Idle clients that answer every ping, one of them slowly."""
    with Crowd() as clients, clients.attentive():
        for _ in range(CLIENTS - 1):
            clients.add(Peer.connect(hub.port, user="idle"))
        clients.add(Slow.connect(hub.port, user="slow"))
        yield clients


def assert_all_are_there(hub: HubProcess, clients: Crowd) -> None:
    assert hub.ask("stats")["connections"] == CLIENTS
    assert ended(hub, "idle") + ended(hub, "slow") == []
    assert all(peer.end is None for peer in clients)


def stop(hub: HubProcess, _: Crowd) -> None:
    hub.signal(signal.SIGSTOP)
    time.sleep(STALL)
    hub.signal(signal.SIGCONT)


def block(_: HubProcess, clients: Crowd, seconds: float = STALL) -> None:
    clients.peers[0].ask("x", "work:freeze", {"seconds": seconds})


def ended(hub: HubProcess, user: str) -> list[str]:
    return [line[3] for line in hub.notes if line[0] == "disconnect" and line[2] == user]


@pytest.mark.parametrize("stand_still", [stop, block])
def test_a_stall_ends_no_client_that_answers_and_every_one_that_is_gone(hub, clients, stand_still):
    user = f"gone-{stand_still.__name__}"
    stalls = hub.ask("stats")["loop_stalls"]
    gone = Peer.connect(hub.port, user=user)  # it reads nothing, and answers nothing
    stand_still(hub, clients)
    until(lambda: ended(hub, user), "noticing who is gone")

    assert ended(hub, user) == ["heartbeat_timeout"]
    assert_all_are_there(hub, clients)
    assert hub.ask("stats")["loop_stalls"] > stalls
    until(lambda: "loop_stalled" in hub.log.read_text(), "the line in the log")
    gone.close()


def test_stalls_that_come_again_and_again_neither_end_clients_nor_keep_who_is_gone(hub, clients):
    gone = Peer.connect(hub.port, user="gone-again")
    for _ in range(20):
        if ended(hub, "gone-again"):
            break
        clients.peers[0].messages.clear()
        block(hub, clients, 0.6 * UNIT)
        until(lambda: clients.peers[0].messages, "the answer")
        time.sleep(0.3 * UNIT)

    assert ended(hub, "gone-again") == ["heartbeat_timeout"]
    assert_all_are_there(hub, clients)
    gone.close()


def test_handshakes_that_came_during_a_stall_are_served(hub, clients):
    """Both of them: the one that was accepted before, and the one that was not."""
    early = Peer.dial(hub.port)
    early.sock.sendall(request({"user": "early"})[:40])
    hub.ask("stats")  # by now it is accepted
    block(hub, clients)
    early.sock.sendall(request({"user": "early"})[40:])
    late = Peer.connect(hub.port, user="late")
    until(lambda: hub.noted("connect", "early"), "letting in")
    until(lambda: hub.noted("connect", "late"), "letting in")
    early.close()
    late.close()
