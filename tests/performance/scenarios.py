"""What is measured, as data. To add a scenario, add it to ``SCENARIOS``."""

from __future__ import annotations

from tests.performance.model import Figure, Load, Scenario, Target
from tests.performance.sample import Sample, longest, percentile
from tests.performance.subjects import (
    C_SEND,
    C_SENDMSG,
    EYEWALL_SERVE,
    PICOWS_ROOM,
    TORNADO_BARE,
    TORNADO_BARE_DEFLATE,
    TORNADO_BARE_TLS,
    TORNADO_CHAT,
    TORNADO_ECHO,
    TORNADO_ROOM,
    TORNADO_ROOM_DEFLATE,
    TORNADO_ROOM_TLS,
    among,
    hub,
    peers,
)

COLLECTIONS = 20
"""Full collections in a row, so that the order for them costs next to nothing."""


def per_delivery(sample: Sample) -> float:
    return sample.server_cpu / sample.deliveries * 1e6


def per_operation(sample: Sample) -> float:
    return sample.server_cpu / sample.operations * 1e6


def delivery(*targets: Target) -> tuple[Figure, ...]:
    title = "CPU time per delivery"
    return (Figure(name="cpu", title=title, unit="µs", value=per_delivery, targets=targets),)


def each(what: str, *targets: Target) -> Figure:
    title = f"CPU time per {what}"
    return Figure(name="cpu", title=title, unit="µs", value=per_operation, targets=targets)


def memory(*targets: Target) -> Figure:
    return Figure(
        name="memory",
        title="Resident memory per idle connection",
        unit="KiB",
        value=lambda sample: sample.resident_kib / sample.clients,
        targets=targets,
    )


FANOUT = Load(mode="fanout", clients=1000, few_clients=5)
REQUEST_TEXT = (
    "One request in through everything: read, parse, decode, access controller, route, two "
    "middleware, an `async` handler that reads its payload, and the ack out. The others send "
    "back what came in."
)
ROOMS_OF_TEN = hub("--room-size", "10")
MEMBERS = ((100, "100 members"), (5000, "5,000 members"), (20_000, "up to 20,000 members"))

SCENARIOS = (
    Scenario(
        name="fanout",
        title="Room fan-out: 1,000 members, 128 B",
        text="One message to a room, the next one when all members have got it.",
        load=FANOUT,
        subjects=(C_SEND, hub(), TORNADO_ROOM, *peers("/room")),
        baseline="floor",
        figures=delivery(Target(limit=1.4, against="floor")),
    ),
    Scenario(
        name="fanout-16",
        title="Room fan-out: 16 messages in one tick, 1,000 members, 128 B",
        text="Sixteen messages to a room at once, the next sixteen when all have got them.",
        load=Load(mode="fanout", clients=1000, few_clients=5, batch=16),
        subjects=(C_SENDMSG, hub(), TORNADO_ROOM),
        baseline="floor",
        figures=delivery(Target(limit=1.8, against="floor")),
    ),
    Scenario(
        name="fanout-16k",
        title="Room fan-out: 1,000 members, 16 KiB",
        text="One message to a room, the next one when all members have got it.",
        load=Load(mode="fanout", clients=1000, few_clients=5, payload=16 * 1024),
        subjects=(C_SEND, hub(), TORNADO_ROOM),
        baseline="floor",
        figures=delivery(Target(limit=1.25, against="floor")),
    ),
    Scenario(
        name="members",
        title="Room fan-out: from 100 to 20,000 members, 128 B",
        text="One message to a room, the next one when all members have got it.",
        load=Load(mode="fanout", clients=20_000, few_clients=5),
        subjects=tuple(
            among(subject, number, title)
            for subject in (C_SEND, hub())
            for number, title in MEMBERS
        ),
        baseline="hub-100",
        figures=delivery(
            Target(of="hub-5000", limit=1.5, against="floor-5000"),
            Target(of="hub-20000", limit=1.5, against="hub-100"),
        ),
    ),
    Scenario(
        name="fanout-tls",
        title="Room fan-out over TLS: 1,000 members, 128 B",
        text="One message to a room, the next one when all members have got it.",
        load=FANOUT,
        subjects=(
            hub("--tls", "{certificate}", title="eyewall over TLS", tls=True),
            TORNADO_ROOM_TLS,
        ),
        baseline="tornado",
        figures=delivery(Target(limit=0.3, against="tornado")),
    ),
    Scenario(
        name="fanout-deflate",
        title="Room fan-out with permessage-deflate: 1,000 members, 128 B",
        text="One message to a room, the next one when all members have got it. Every message "
        "is compressed: for this the hub's threshold, by default 256 B, was lowered.",
        load=FANOUT,
        subjects=(
            hub(name="plain", title="eyewall, uncompressed"),
            hub(
                "--compress-from",
                "64",
                title="eyewall, permessage-deflate",
                besides="`CompressionConfig(threshold=64)`",
                deflate=True,
            ),
            TORNADO_ROOM_DEFLATE,
        ),
        baseline="plain",
        figures=delivery(Target(limit=1.1, against="plain")),
    ),
    Scenario(
        name="request",
        title="A request with an ack, one a read",
        text=f"{REQUEST_TEXT} 1,000 clients with one request of 128 B each in flight.",
        load=Load(mode="request", clients=1000, few_clients=5, topic="bench:ask"),
        subjects=(hub(), TORNADO_ECHO, *peers("/echo")),
        baseline="tornado",
        figures=(each("request", Target(limit=15)),),
    ),
    Scenario(
        name="request-16",
        title="A request with an ack, 16 a read",
        text=f"{REQUEST_TEXT} 50 clients that write sixteen requests of 128 B at once.",
        load=Load(mode="request", clients=50, few_clients=2, batch=16, topic="bench:ask"),
        subjects=(hub(), TORNADO_ECHO, *peers("/echo")),
        baseline="tornado",
        figures=(each("request", Target(limit=7)),),
    ),
    Scenario(
        name="chat",
        title="Chat: one message in, ten deliveries and an ack out",
        text="1,000 users in rooms of ten, each with one message of 128 B in flight. The "
        "handler adds the sender, and sends the message to the room.",
        load=Load(mode="chat", clients=1000, few_clients=20, topic="chat:say"),
        subjects=(ROOMS_OF_TEN, TORNADO_CHAT),
        baseline="tornado",
        figures=(each("message in", Target(limit=25)),),
    ),
    Scenario(
        name="others",
        title="Chat, with 100,000 other rooms and users registered",
        text="The chat from above, in a hub that also holds 100,000 rooms made by "
        "`create_room`, each with a role that `set_role` gave to a user of its own. None "
        "of these users is connected.",
        load=Load(mode="chat", clients=1000, few_clients=20, topic="chat:say"),
        subjects=(
            hub("--room-size", "10", name="alone", title="eyewall, nothing else registered"),
            hub("--room-size", "10", "--others", "{others}", title="eyewall, 100,000 others"),
        ),
        baseline="alone",
        figures=(each("message in", Target(limit=1.1, against="alone")),),
    ),
    Scenario(
        name="latency",
        title="Latency: 1,000 members, 100 messages a second, 128 B",
        text="From the moment at which a message is to be published to its arrival at each of "
        "the members, on one clock, over all members, messages and runs.",
        load=Load(mode="latency", clients=1000, few_clients=5),
        subjects=(hub(), PICOWS_ROOM, TORNADO_ROOM),
        baseline="picows",
        figures=(
            Figure(
                name="p99",
                title="Latency, 99th percentile",
                unit="ms",
                value=lambda sample: percentile([sample], 0.99) * 1e3,
                merged=lambda samples: percentile(samples, 0.99) * 1e3,
                targets=(Target(limit=1.3, against="picows"),),
            ),
            Figure(
                name="median",
                title="Latency, median",
                unit="ms",
                value=lambda sample: percentile([sample], 0.5) * 1e3,
                merged=lambda samples: percentile(samples, 0.5) * 1e3,
            ),
        ),
    ),
    Scenario(
        name="ping",
        title="A ping during a fan-out to 10,000 members",
        text="One message after the other to a room; one of its members sends a ping every "
        "20 ms until all members have got the message.",
        load=Load(mode="ping", clients=10_000, few_clients=5),
        subjects=(hub(), TORNADO_ROOM),
        baseline="tornado",
        figures=(
            Figure(
                name="longest",
                title="Longest time from a ping to its pong",
                unit="ms",
                value=lambda sample: longest([sample]) * 1e3,
                merged=lambda samples: longest(samples) * 1e3,
                targets=(Target(limit=50),),
            ),
        ),
    ),
    Scenario(
        name="connect",
        title="Connecting, and being idle",
        text="20,000 clients, or as many as the limit on descriptors allows, connect and stay. "
        "With the hub each is a user of its own in a room of ten; with Tornado it has "
        "no user and no room.",
        load=Load(mode="connect", clients=20_000, few_clients=20),
        subjects=(ROOMS_OF_TEN, TORNADO_BARE),
        baseline="tornado",
        figures=(
            each("connect", Target(limit=1.1, against="tornado")),
            Figure(
                name="rate",
                title="Connects per second, fifty at a time",
                unit="1/s",
                value=lambda sample: sample.clients / sample.opening,
                more_is_better=True,
            ),
            memory(Target(limit=3)),
        ),
    ),
    Scenario(
        name="idle",
        title="Being idle, beside the peers",
        text="As above, with 3,000 clients. With the peers each is in no room.",
        load=Load(mode="connect", clients=3000, few_clients=5),
        subjects=(ROOMS_OF_TEN, TORNADO_BARE, *peers("/echo")),
        baseline="tornado",
        figures=(memory(),),
    ),
    Scenario(
        name="idle-deflate",
        title="Being idle with permessage-deflate",
        text="As many clients as above, which all negotiate permessage-deflate. Tornado has "
        "2,000, which makes no difference to the memory of each.",
        load=Load(mode="connect", clients=20_000, few_clients=5),
        subjects=(
            hub(
                "--room-size",
                "10",
                "--compress-from",
                "256",
                title="eyewall, permessage-deflate",
                besides="`CompressionConfig()`",
                deflate=True,
            ),
            TORNADO_BARE_DEFLATE,
        ),
        baseline="tornado",
        figures=(memory(Target(limit=3)),),
    ),
    Scenario(
        name="idle-tls",
        title="Being idle over TLS",
        text="3,000 clients connect over TLS 1.3 and stay.",
        load=Load(mode="connect", clients=3000, few_clients=5),
        subjects=(
            hub("--room-size", "10", "--tls", "{certificate}", title="eyewall over TLS", tls=True),
            TORNADO_BARE_TLS,
        ),
        baseline="tornado",
        figures=(memory(Target(limit=24)),),
    ),
    Scenario(
        name="collect",
        title="A full garbage collection with 5,000 connections",
        text=f"5,000 idle clients; `gc.collect()`, {COLLECTIONS} times in a row.",
        load=Load(mode="collect", clients=5000, few_clients=5, batch=COLLECTIONS),
        subjects=(ROOMS_OF_TEN, TORNADO_BARE),
        baseline="tornado",
        figures=(
            Figure(
                name="cpu",
                title="CPU time per collection",
                unit="ms",
                value=lambda sample: per_operation(sample) / 1e3,
                targets=(Target(limit=25),),
            ),
        ),
    ),
    Scenario(
        name="start",
        title="From the start to the first accepted handshake",
        text="All CPU time of the process, that of starting Python and importing included.",
        load=Load(mode="start", clients=1, few_clients=1),
        subjects=(EYEWALL_SERVE, TORNADO_BARE),
        baseline="tornado",
        figures=(
            Figure(
                name="cpu",
                title="CPU time",
                unit="s",
                value=lambda sample: sample.server_cpu,
                targets=(Target(limit=1),),
            ),
        ),
    ),
)
