"""However a connection ends, nothing of it is left: no entry, no timer, no descriptor, no byte."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.faults.clients import Crowd, Peer, request
from tests.faults.endings import (
    HANDSHAKE_TIMEOUT,
    LIMIT,
    PONG_TIMEOUT,
    QUICK,
    WAYS,
    WRITE_WAIT,
)
from tests.faults.support import MIB, WITHIN, HubProcess, assert_pairs, until

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture(scope="module")
def hub(transport, tmp_path_factory) -> Iterator[HubProcess]:
    """Two servers that share bus and state; connections end at the first."""
    options = {
        "queue": {"size": 32},
        "heartbeat": {
            "interval": PONG_TIMEOUT / 3,
            "pong_timeout": PONG_TIMEOUT,
            "write_wait": WRITE_WAIT,
        },
        "max_message_size": LIMIT,
        "handshake_timeout": HANDSHAKE_TIMEOUT,
        "max_connections_per_address": 100_000,
    }
    with HubProcess(tmp_path_factory.mktemp("ends"), nodes=2, options=options) as hub:
        for port in hub.ports:  # whatever is made once is made now
            with Peer.connect(port, user="first", rooms="lab", session=True, expires=3600) as peer:
                peer.ask("1", "work:echo")
                until(lambda peer=peer: peer.read() and peer.answers)
        until(lambda: settled(hub))
        until(lambda: hub.ask("sessions") == 0, "forgetting the sessions", pause=0.05)
        yield hub


def settled(hub: HubProcess) -> bool:
    stats = hub.ask("stats")
    opened = sum(line[0] == "connect" for line in hub.notes)
    closed = sum(line[0] == "disconnect" for line in hub.notes)
    return stats["connections"] == 0 and opened == closed


def left_behind(hub: HubProcess, before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more or less of than before: the two numbers of each."""
    now = hub.ask("census")
    # Who was seen last, and when, is remembered on purpose, and bounded.
    names = (before.keys() | now.keys()) - {"MemoryState._last_seen", "datetime"}
    pairs = {name: (before.get(name, 0), now.get(name, 0)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def until_forgotten(hub: HubProcess, before: dict[str, int]) -> None:
    until(
        lambda: not left_behind(hub, before),
        lambda: f"forgetting {left_behind(hub, before)}",
        pause=0.2,  # a census takes the server a tenth of a second
    )


def steady(hub: HubProcess) -> dict[str, int]:
    """Return the census when it is twice the same: nothing is just being done."""
    found = [hub.ask("census")]

    def is_steady() -> bool:
        found.append(hub.ask("census"))
        return found[-1] == found[-2]

    until(is_steady, "a rest", pause=0.02)
    return found[-1]


@pytest.fixture
def witness(hub) -> Iterator[None]:
    """A member of the same room, at the other server."""
    peer = Peer.connect(hub.ports[1], user="witness", rooms="lab")
    with Crowd([peer]) as crowd, crowd.attentive():
        until(lambda: _online(hub, "witness"), "the witness")
        hub.ask("publish", room="lab", first=0, count=1, pad=1)
        until(lambda: peer.of("news"), "hearing from the first server")
        yield
    until(lambda: settled(hub), "the witness's end")
    assert_pairs(hub.notes)


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_left_of_a_connection_that_ended(hub, way):
    who = {"user": f"u-{way.__name__}", "rooms": "lab,hall", "expires": 3600}
    before, fds = steady(hub), hub.fds

    reason, close = way(hub, who)

    until(lambda: hub.noted("disconnect", who["user"]), "the hook")
    until(lambda: hub.ask("links") == 1, "the socket's end")
    until_forgotten(hub, before)
    assert hub.fds == fds
    (end,) = [n for n in hub.notes if n[0] == "disconnect" and n[2] == who["user"]]
    assert end[3] == reason
    assert close is None or close[1] == reason
    for seen in hub.ask("cluster", users=[who["user"], "witness"], room="lab"):
        assert seen["present"] == {who["user"]: 0, "witness": 1}
        assert seen["members"] == {"witness": 1}
    assert hub.complaints == []


def _online(hub: HubProcess, user: str) -> bool:
    return all(seen["present"][user] for seen in hub.ask("cluster", users=[user], room="lab"))


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTT", None], ids=["nothing", "a part", "all"])
@pytest.mark.parametrize("end", ["close", "reset", "wait"])
def test_nothing_is_left_of_a_handshake_that_did_not_end(hub, sent, end):
    before, fds = steady(hub), hub.fds
    asking = request({"user": "nobody", "auth": "never"})

    peer = Peer.dial(hub.port)
    peer.sock.sendall(asking if sent is None else sent)
    until(lambda: hub.fds > fds, "arriving")
    if end == "wait":
        peer.sock.settimeout(WITHIN)
        assert peer.sock.recv(1) == b""
        peer.close()
    else:
        getattr(peer, end)()

    until(lambda: hub.fds == fds, "the socket's end")
    until_forgotten(hub, before)
    assert not hub.noted("connect", "nobody")
    assert hub.complaints == []


def test_two_thousand_ends_in_mixed_ways_leave_memory_and_descriptors_where_they_were(hub):
    """A second thousand costs nothing that the first had not."""
    quick = [way for way in WAYS if way.__name__ in QUICK]
    chosen = random.Random(1)
    before, fds = steady(hub), hub.fds

    for n in range(1000):
        chosen.choice(quick)(hub, {"user": f"m{n % 50}", "rooms": "lab,hall", "expires": 3600})
    until(lambda: settled(hub), "the first thousand")
    rss = hub.rss
    for n in range(1000):
        chosen.choice(quick)(hub, {"user": f"m{n % 50}", "rooms": "lab,hall", "expires": 3600})
    until(lambda: settled(hub), "the second thousand")

    until_forgotten(hub, before)
    until(lambda: hub.fds == fds, "descriptors")
    assert hub.rss - rss < 2 * MIB
    assert_pairs(hub.notes)
    assert hub.complaints == []
