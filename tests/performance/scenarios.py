"""What is measured, as data: a scenario is a load, who bears it, and the figures read off.

To add a peer, write a server that does what ``serving.py`` describes and name it as a
``Subject`` of the scenarios it can play in. To add a scenario, add it to ``SCENARIOS``.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tests.performance.sample import Sample


class Size(StrEnum):
    """How much of it: for the page, for a look, or only to see that it still runs."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the load generator does; durations in seconds."""

    mode: str
    clients: int
    few_clients: int
    """Instead of ``clients`` in the tiny size."""
    batch: int = 1
    payload: int = 128
    room_size: int = 10
    topic: str = ""
    many: bool = False
    """As many clients as the limit on descriptors allows, ``clients`` at most."""

    def clients_at(self, size: Size) -> int:
        if size is Size.TINY:
            return self.few_clients
        if self.many:
            # Each side needs a descriptor per connection, a few of its own, and some more
            # for what is on its way from one hand to the other.
            wanted = self.clients if size is Size.FULL else self.clients // 10
            return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200)
        return self.clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Somebody who bears the load; ``{clients}`` in the command is how many there are."""

    name: str
    title: str
    command: tuple[str, ...]
    path: str = "/ws?user=u%06u"
    answer: str = '"ref":"'
    expect: str = ""
    setup: str
    """What was switched on, for the page."""

    @property
    def is_hub(self) -> bool:
        return self.name == "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The hub's figure is to be at most ``limit``, or ``limit`` times that of ``against``."""

    limit: float
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number read off a sample."""

    name: str
    title: str
    unit: str
    value: Callable[[Sample], float]
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    title: str
    text: str
    load: Load
    subjects: tuple[Subject, ...]
    baseline: str
    """The subject that the others' ratios are taken against."""
    figures: tuple[Figure, ...]
    saturates: bool = False
    """The clients never wait for anything but the server."""


DURATIONS = {Size.FULL: (0.5, 3.0), Size.QUICK: (0.2, 0.6), Size.TINY: (0.02, 0.05)}
"""Seconds to warm up, and to measure."""


def per_delivery(sample: Sample) -> float:
    return sample.server_cpu / sample.deliveries * 1e6


def per_operation(sample: Sample) -> float:
    return sample.server_cpu / sample.operations * 1e6


def memory_each(sample: Sample) -> float:
    return sample.resident_kib / sample.clients


def hub(*arguments: str, expect: str = '"status":"ok"') -> Subject:
    return Subject(
        name="hub",
        title="eyewall",
        command=("python", "-m", "tests.performance.hub_server", *arguments),
        expect=expect,
        setup="the public API, all defaults (registry, rooms, stats, heartbeat), "
        "an authenticator, an access controller, two middleware",
    )


def tornado(path: str, title: str, what: str, **answer: str) -> Subject:
    return Subject(
        name="tornado",
        title=title,
        command=("python", "-m", "tests.performance.tornado_server"),
        path=path,
        setup=f"{what}; `set_nodelay(True)`, no compression, no pings, no authentication",
        **answer,
    )


C_SEND = Subject(
    name="floor",
    title="C `send()`",
    command=("floor", "{clients}"),
    setup="a bare loop over the sockets: no registry, no reading, the frame is made once",
)
C_SENDMSG = Subject(
    name="floor",
    title="C `sendmsg()`",
    command=C_SEND.command,
    setup="a bare loop over the sockets, one call with all frames for each",
)
TORNADO_ROOM = tornado(
    "/room", "Tornado `write_message`", "a set of handlers, `write_message` of one string to each"
)
TORNADO_ECHO = tornado(
    "/echo",
    "Tornado, bare echo",
    "`on_message` hands what it gets to `write_message`, unread",
    answer='"id":"',
)
TORNADO_CHAT = tornado(
    "/chat?user=u%06u",
    "Tornado, json and `write_message`",
    "a dict of sets of handlers, `json`, `write_message` of one string to each",
    expect='"status":"ok"',
)
TORNADO_BARE = tornado("/echo", "Tornado, bare handler", "a handler without state")

REQUEST_TEXT = (
    "One request in through everything: read, parse, decode, access controller, route, two "
    "middleware, an `async` handler that reads its payload, and the ack out."
)

SCENARIOS = (
    Scenario(
        name="fanout",
        title="Room fan-out: 1,000 members, 128 B",
        text="One message to a room, the next one when all members have got it.",
        load=Load(mode="fanout", clients=1000, few_clients=5),
        subjects=(C_SEND, hub(), TORNADO_ROOM),
        baseline="floor",
        figures=(
            Figure(
                name="cpu",
                title="CPU time per delivery",
                unit="µs",
                value=per_delivery,
                target=Target(limit=1.4, against="floor"),
            ),
        ),
    ),
    Scenario(
        name="fanout-16",
        title="Room fan-out: 16 messages in one tick, 1,000 members, 128 B",
        text="Sixteen messages to a room at once, the next sixteen when all have got them.",
        load=Load(mode="fanout", clients=1000, few_clients=5, batch=16),
        subjects=(C_SENDMSG, hub(), TORNADO_ROOM),
        baseline="floor",
        figures=(
            Figure(
                name="cpu",
                title="CPU time per delivery",
                unit="µs",
                value=per_delivery,
                target=Target(limit=1.8, against="floor"),
            ),
        ),
    ),
    Scenario(
        name="request",
        title="A request with an ack, one a read",
        text=f"{REQUEST_TEXT} 1,000 clients with one request of 128 B each under way.",
        load=Load(mode="request", clients=1000, few_clients=5, topic="bench:ask"),
        subjects=(hub(), TORNADO_ECHO),
        baseline="tornado",
        saturates=True,
        figures=(
            Figure(
                name="cpu",
                title="CPU time per request",
                unit="µs",
                value=per_operation,
                target=Target(limit=15),
            ),
        ),
    ),
    Scenario(
        name="request-16",
        title="A request with an ack, 16 a read",
        text=f"{REQUEST_TEXT} 50 clients that write sixteen requests of 128 B at once.",
        load=Load(mode="request", clients=50, few_clients=2, batch=16, topic="bench:ask"),
        subjects=(hub(), TORNADO_ECHO),
        baseline="tornado",
        saturates=True,
        figures=(
            Figure(
                name="cpu",
                title="CPU time per request",
                unit="µs",
                value=per_operation,
                target=Target(limit=7),
            ),
        ),
    ),
    Scenario(
        name="chat",
        title="Chat: one message in, ten deliveries and an ack out",
        text="1,000 users in rooms of ten, each with one message of 128 B under way. The "
        "handler adds who said it, and sends it to the room.",
        load=Load(mode="chat", clients=1000, few_clients=20, topic="chat:say"),
        subjects=(hub("--room-size", "10"), TORNADO_CHAT),
        baseline="tornado",
        saturates=True,
        figures=(
            Figure(
                name="cpu",
                title="CPU time per message in",
                unit="µs",
                value=per_operation,
                target=Target(limit=25),
            ),
        ),
    ),
    Scenario(
        name="connect",
        title="Connecting, and being idle",
        text="20,000 clients, or as many as the limit on descriptors allows, connect and stay. "
        "With the hub each is a user of its own in a room of ten; with Tornado it is nobody "
        "in particular, in no room.",
        load=Load(mode="connect", clients=20_000, few_clients=20, many=True),
        subjects=(hub("--room-size", "10"), TORNADO_BARE),
        baseline="tornado",
        figures=(
            Figure(
                name="cpu",
                title="CPU time per connect",
                unit="µs",
                value=per_operation,
                target=Target(limit=1.1, against="tornado"),
            ),
            Figure(
                name="memory",
                title="Resident memory per idle connection",
                unit="KiB",
                value=memory_each,
                target=Target(limit=3),
            ),
        ),
    ),
)
