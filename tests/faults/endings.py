"""The ways in which a connection ends. Each connects, ends, and says what should be heard of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.certificate import certificate
from tests.faults import support
from tests.faults.clients import CLOSE, Crowd, Peer, framed, request
from tests.faults.support import UNIT, HubProcess, die_with_parent, until

LIMIT = 64 * 1024
"""The server's max_message_size."""
PONG_TIMEOUT = 1.5 * UNIT
WRITE_WAIT = 1.5 * UNIT
HANDSHAKE_TIMEOUT = 1.5 * UNIT

End = Callable[[HubProcess, dict[str, Any]], tuple[str, tuple[int, str] | None]]
"""Connects, ends, and returns the reason that the hooks should hear and what the client
was told, if it was told anything."""


def told(peer: Peer) -> tuple[int, str] | None:
    with Crowd([peer]) as crowd:
        crowd.until(lambda: peer.end, "the end")
    return peer.closed


# --- the ways


def by_closing(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    peer.write(framed((1000).to_bytes(2, "big"), CLOSE))
    code, _ = told(peer) or (0, "")
    assert code == 1000
    return "client_closed", None


def by_leaving_without_a_word(hub: HubProcess, who: dict[str, Any]) -> Any:
    Peer.connect(hub.port, **who).close()
    return "connection_lost", None


def by_a_reset(hub: HubProcess, who: dict[str, Any]) -> Any:
    Peer.connect(hub.port, **who).reset()
    return "connection_lost", None


def by_closing_one_direction(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    peer.shut()
    told(peer)
    return "connection_lost", None


def by_being_killed(hub: HubProcess, who: dict[str, Any]) -> Any:
    program = (
        "import socket, ssl, sys, time\n"
        "peer = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "if sys.argv[2:]:\n"
        "    trusting = ssl.create_default_context(cafile=sys.argv[2])\n"
        "    peer = trusting.wrap_socket(peer, server_hostname='localhost')\n"
        "peer.sendall(sys.stdin.buffer.read())\n"
        "time.sleep(1000)\n"
    )
    trusted = [str(certificate())] if support.over_tls else []
    client = subprocess.Popen(
        [sys.executable, "-c", program, str(hub.port), *trusted],
        stdin=subprocess.PIPE,
        preexec_fn=die_with_parent,
    )
    assert client.stdin is not None
    client.stdin.write(request(who))
    client.stdin.close()
    until(lambda: hub.noted("connect", who["user"]), "connecting")
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    return "connection_lost", None


def by_falling_silent(hub: HubProcess, who: dict[str, Any]) -> Any:
    """The connection stands, but nobody is there to answer a ping."""
    peer = Peer.connect(hub.port, keep=False, **who)
    until(lambda: hub.noted("disconnect", who["user"]), "noticing")
    peer.close()
    return "heartbeat_timeout", None


def by_being_disconnected(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    until(lambda: hub.noted("connect", who["user"]), "connecting")
    assert hub.ask("disconnect", user=who["user"]) == 1
    return "disconnected", told(peer)


def by_an_expired_token(hub: HubProcess, who: dict[str, Any]) -> Any:
    return "token_expired", told(Peer.connect(hub.port, **{**who, "expires": 0.3}))


def by_breaking_the_protocol(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    peer.write(b"\x81\x05hello")  # not masked
    return "protocol_error", told(peer)


def by_a_message_too_big(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    peer.write(framed(b"x" * (LIMIT + 1)))
    return "message_too_big", told(peer)


def by_bytes_that_are_no_text(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    peer.write(framed(b"\xff\xfe"))
    return "invalid_utf8", told(peer)


def by_being_refused(hub: HubProcess, who: dict[str, Any]) -> Any:
    return "policy_violation", told(Peer.connect(hub.port, refuse=1, **who))


def during_its_connect_hook(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, connect=who["user"], **who)
    until(lambda: hub.noted("join", "lab") and hub.noted("connect", who["user"]), "connecting")
    peer.reset()
    hub.ask("open", gate=who["user"])
    return "connection_lost", None


def while_a_handler_runs(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, session=True, **who)
    for n in range(10):
        peer.ask(str(n), "work:gate", {"gate": who["user"]})
    conn = until(lambda: next((n[1] for n in hub.notes if who["user"] in n), None))
    until(lambda: hub.noted("working", conn), "work")
    peer.reset()
    until(lambda: hub.noted("disconnect", who["user"]), "noticing")
    hub.ask("open", gate=who["user"])
    return "connection_lost", None


def while_it_owes_acks(hub: HubProcess, who: dict[str, Any]) -> Any:
    peer = Peer.connect(hub.port, **who)
    until(lambda: hub.noted("connect", who["user"]), "connecting")
    hub.ask("emit_later", user=who["user"])
    until(lambda: peer.read() and len(peer.of("asked")) == 3, "being asked")
    peer.close()
    return "connection_lost", None


def stall(hub: HubProcess, who: dict[str, Any]) -> Peer:
    peer = Peer.connect(hub.port, buffer=4096, **who)
    until(lambda: hub.noted("connect", who["user"]), "connecting")
    sent = 0
    while not hub.ask("queued", user=who["user"]):
        assert sent < 20_000
        hub.ask("publish", room="lab", first=sent, count=100, pad=1000)
        sent += 100
    return peer


def while_stalled(hub: HubProcess, who: dict[str, Any]) -> Any:
    stall(hub, who).reset()
    return "write_error", None  # it is by writing that the server finds out


def by_never_reading(hub: HubProcess, who: dict[str, Any]) -> Any:
    """Neither its messages nor, then, the close frame."""
    peer = stall(hub, who)
    until(lambda: hub.noted("disconnect", who["user"]), "noticing")
    until(lambda: hub.ask("links") == 1, "giving up")
    peer.close()
    return "slow_consumer", None


WAYS = [
    way for name, way in list(globals().items()) if name.startswith(("by_", "during_", "while_"))
]

QUICK = {
    "by_closing",
    "by_leaving_without_a_word",
    "by_a_reset",
    "by_closing_one_direction",
    "by_breaking_the_protocol",
    "by_bytes_that_are_no_text",
    "by_being_refused",
}
