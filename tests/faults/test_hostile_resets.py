"""RST in the middle of everything: it is the end of that connection, and of nothing else."""

from __future__ import annotations

from typing import Any

from tests.faults.clients import CLOSE, TEXT, Crowd, Peer, framed, request
from tests.faults.hostile import DEFLATE, deflated, fragment, unharmed
from tests.faults.support import MIB, HubProcess, assert_pairs, until

TIMES = 100
"""How often each is done: at one moment or another it hits what it is meant to hit."""


def settled(hub: HubProcess) -> None:
    """All connections but the witness's have ended, and every hook was heard once."""
    until(lambda: hub.ask("stats")["connections"] == 1, "the end of the others")
    opened = sum(line[0] == "connect" for line in hub.notes)
    until(lambda: sum(n[0] == "disconnect" for n in hub.notes) == opened - 1, "their hooks")
    last = [line for line in hub.notes if line[0] == "connect" and line[2] == "witness"][-1]
    assert_pairs([line for line in hub.notes if line[1] != last[1]])


def test_in_the_middle_of_the_handshake(hub):
    asking = request({"user": "nobody"})
    with unharmed(hub):
        for n in range(TIMES):
            peer = Peer.dial(hub.port)
            peer.sock.sendall(asking[: len(asking) * n // (TIMES - 1)])
            peer.reset()
        settled(hub)


def test_in_the_middle_of_a_frame(hub):
    whole = [
        framed(b"x" * 100_000),
        fragment(b"x" * 1000, TEXT),
        fragment(deflated(bytes(MIB) * 5), 0xC1)[:-1],
        framed(b"\x03\xe8goodbye", CLOSE)[:-1],
    ]
    with unharmed(hub):
        for n in range(TIMES):
            data = whole[n % len(whole)]
            peer = Peer.connect(hub.port, fields=DEFLATE)
            peer.write(data[: 1 + len(data) * n // TIMES])
            peer.reset()
        settled(hub)


def test_in_the_middle_of_a_fan_out(hub):
    """Some have read a part of it, some nothing; some are stalled when they go."""
    with unharmed(hub) as witness:
        peers = [Peer.connect(hub.port, rooms="lab", buffer=4096) for _ in range(TIMES)]
        until(lambda: hub.ask("stats")["connections"] == TIMES + 1, "connecting")
        hub.tell("publish", room="lab", first=0, count=100, pad=1000)
        for peer in peers[::2]:
            peer.read(2000)
            peer.reset()
        hub.answer("publish")
        witness.is_answered()
        hub.tell("publish", room="lab", first=100, count=1000, pad=1000)
        for peer in peers[1::2]:
            peer.reset()
        hub.answer("publish")
        settled(hub)


def test_in_the_middle_of_its_requests(hub):
    """What they asked for is still being worked on."""
    with unharmed(hub):
        for n in range(TIMES):
            peer = Peer.connect(hub.port)
            for ref in range(20):
                peer.ask(str(ref), "work:nap", {"seconds": 0.001})
            if n % 2:
                with Crowd() as crowd:
                    crowd.add(peer)
                    crowd.until(lambda peer=peer: peer.messages, "the first answer")
                    peer.reset()
            else:
                peer.reset()
        settled(hub)


def close(n: int) -> Any:
    """The beginning of a close, the whole of it, or a violation that leads to one."""
    return [framed(b"\x03\xe8", CLOSE), b"\x81\x05hello", framed(b"\xff")][n % 3]


def test_in_the_middle_of_the_close(hub):
    """The server's close frame is on its way, or its end is being waited for."""
    with unharmed(hub):
        for n in range(TIMES):
            peer = Peer.connect(hub.port)
            peer.write(close(n))
            if n % 2:
                until(lambda peer=peer: peer.read() and peer.closed, "the close frame")
            peer.reset()
        settled(hub)


def test_while_the_server_closes_them_all(hub):
    with unharmed(hub):
        peers = [Peer.connect(hub.port, user="expelled") for _ in range(TIMES)]
        until(lambda: hub.ask("stats")["connections"] == TIMES + 1, "connecting")
        hub.tell("disconnect", user="expelled")
        for peer in peers:
            peer.reset()
        assert hub.answer("disconnect") > 0
        settled(hub)
