"""Twenty thousand connections come and go: afterwards the server is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.certificate import certificate, tls_contexts
from tests.faults.churn import WAYS, Round
from tests.faults.support import MIB, UNIT, HubProcess, assert_pairs, until

ROUNDS = 10
WARM_UP = 4
"""Rounds after which memory has found its size: pools, caches and buffers that are kept."""

GROWTH = 4 * MIB
"""What memory may differ by after that. It grows by arenas of 1 MiB now and then, and stays
the same for ten thousand connections in between. Twelve thousand come in that time: what
each of them left behind would be 350 bytes, half of what a connection is made of. Smaller
things are found by the census, and by counting what each line has allocated."""

TRACED = 4
"""Rounds that are compared, line by line."""
LEAST = 20
"""How many there are of each way in such a round: too many for a deadline that was
cancelled to wait four rounds for being thrown away."""


@contextmanager
def serve(folder: Path) -> Iterator[Round]:
    """A plain server and one with TLS, which share bus and state."""
    trusted = tls_contexts()[1]
    options = {
        "queue": {"size": 32},
        "heartbeat": {"interval": 0.5 * UNIT, "pong_timeout": UNIT, "write_wait": UNIT},
        "compression": {},
        "handshake_timeout": 1.5 * UNIT,
        "max_connections_per_address": 100_000,
        "max_connections_per_user": 100_000,
    }
    with HubProcess(folder, nodes=2, options=options, certificate=str(certificate())) as hub:
        yield Round(hub, trusted)


def go_round(here: Round, most: int = 1000) -> None:
    """Have all come and go, and wait until the server is done with it."""
    for way, count in WAYS.items():
        way(here, min(count, most))
    here.finish()
    until(lambda: here.hub.ask("links") == 0, "the sockets' end")
    until(lambda: here.hub.ask("stats")["connections"] == 0, "the connections' end")
    until(lambda: here.hub.ask("sessions") == 0, "forgetting the sessions", pause=0.05)


def difference(before: dict[str, int], now: dict[str, int]) -> dict[str, tuple[int, int]]:
    pairs = {name: (before.get(name, 0), now.get(name, 0)) for name in before.keys() | now.keys()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.timeout(600 * UNIT)
def test_twenty_thousand_ends_leave_everything_where_it_was(tmp_path):
    assert ROUNDS * sum(WAYS.values()) >= 20_000
    with serve(tmp_path) as here:
        hub = here.hub
        go_round(here)
        before, fds = hub.ask("census"), hub.fds
        rss = 0
        for n in range(1, ROUNDS):
            if n == WARM_UP:
                rss = hub.rss
            go_round(here)
            until(
                lambda: not difference(before, hub.ask("census")),
                lambda: f"forgetting {difference(before, hub.ask('census'))}",
                pause=0.2,
            )
            until(lambda: hub.fds == fds, lambda: f"from {fds} descriptors to {hub.fds}")

        assert hub.rss - rss < GROWTH
        assert_pairs(hub.notes)
        assert hub.complaints == []


@pytest.mark.timeout(600 * UNIT)
def test_no_line_of_ours_has_more_in_use_after_each_round(tmp_path, monkeypatch):
    """Once more may be a cache or a larger table; every time is a leak."""
    monkeypatch.setenv("PYTHONTRACEMALLOC", "1")
    with serve(tmp_path) as here:
        seen = []
        for _ in range(TRACED):
            go_round(here, LEAST)
            seen.append(here.hub.ask("allocated"))

        counts = {line: [each.get(line, 0) for each in seen] for line in seen[-1]}
        growing = {line: c for line, c in counts.items() if all(a < b for a, b in pairwise(c))}
        assert growing == {}
