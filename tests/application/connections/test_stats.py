from eyewall.application.connections.stats import GuardedMetrics, Stats
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.report import Incident
from tests.application.fakes import START, RecordingLogger, RecordingMetrics


def test_each_fact_is_counted_and_told_to_the_metrics(clock):
    metrics = RecordingMetrics()
    stats = Stats(clock, metrics, RecordingLogger())

    stats.sent(3)
    stats.dropped("queue_full")
    stats.dropped("queue_full", 2)
    stats.failed("forbidden")

    assert (stats.out_messages, stats.drops, stats.errors) == (3, 3, 1)
    assert metrics.facts == [
        ("sent", 3),
        ("dropped", "queue_full", 1),
        ("dropped", "queue_full", 2),
        ("failed", "forbidden"),
    ]


def test_a_snapshot_says_since_when_it_counts(clock):
    stats = Stats(clock, None, RecordingLogger())
    stats.in_messages += 2
    clock.pass_time(90)

    found = stats.snapshot(connections=4, users=3, rooms=2)

    assert (found.connections, found.users, found.rooms) == (4, 3, 2)
    assert found.in_messages == 2
    assert found.started_at == START
    assert found.uptime == 90


def test_reset_starts_again_from_zero_the_uptime_too(clock):
    stats = Stats(clock, None, RecordingLogger())
    stats.in_messages = 1
    stats.happened(Incident.STRAY_ACKS)
    stats.refused("origin")
    stats.sent(1)
    stats.dropped("queue_full")
    stats.failed("internal")
    clock.pass_time(90)

    stats.reset()
    clock.pass_time(5)

    found = stats.snapshot(connections=0, users=0, rooms=0)
    assert (found.in_messages, found.out_messages, found.errors, found.drops) == (0, 0, 0, 0)
    assert (found.stray_acks, found.refused) == (0, {})
    assert found.uptime == 5
    assert (found.started_at - START).total_seconds() == 90


def test_without_metrics_every_fact_may_still_be_told(clock):
    stats = Stats(clock, None, RecordingLogger())

    for name in GuardedMetrics.__slots__:
        getattr(stats.metrics, name)("fact", 1)

    assert stats.wanted is None


def test_metrics_that_raise_break_nothing_and_are_logged_once(clock):
    """Whatever a user's metrics raise, the fact that they were told of has happened."""

    class Broken:
        def dropped(self, reason, messages):
            raise SystemExit("no disk")

    logger = RecordingLogger()
    stats = Stats(clock, Broken(), logger)

    stats.dropped("queue_full")
    stats.dropped("queue_full")

    assert stats.drops == 2
    assert logger.of("error") == ["metrics_failed"]
    assert logger.fields("metrics_failed")["method"] == "dropped"


def test_metrics_hear_of_incidents_and_refusals_if_they_want_to(clock):
    class Watching(RecordingMetrics):
        def refused(self, reason):
            self.facts.append(("refused", reason))

        def incident(self, name, count):
            self.facts.append(("incident", name, count))

    metrics = Watching()
    stats = Stats(clock, metrics, RecordingLogger())

    stats.refused("origin")
    stats.happened(Incident.BAD_PACKETS)
    stats.metrics.loop_lag(0.1)

    assert metrics.facts == [("refused", "origin"), ("incident", "bad_packets", 1)]
    found = stats.snapshot(connections=0, users=0, rooms=0)
    assert (found.refused, found.bad_packets, found.unsent) == ({"origin": 1}, 1, 0)


async def test_the_hub_counts_what_comes_and_goes(node):
    """Every envelope received counts, routed or not, acks too; every envelope sent,
    acks and errors too; every error or nack."""

    @node.on("echo")
    async def echo(ctx, msg):
        await ctx.reply()

    ada = await node.connect("ada", session=True)
    await node.connect("bob")
    node.hub.reset_stats()

    ada.say({"id": "1", "topic": "echo", "ack": True})  # a reply and an ack
    ada.say({"id": "2", "topic": "nowhere"})  # an error
    ada.say({"id": "3", "topic": "nowhere", "ack": True})  # a nack
    ada.say({"topic": "x", "event": "ack", "ref": "?"})
    ada.say({"topic": 5})  # an error: invalid_envelope
    await ada.ask("{")  # an error: no envelope at all

    found = node.hub.stats()
    assert (found.connections, found.users, found.rooms) == (2, 2, 0)
    assert found.in_messages == 5
    assert found.out_messages == 6
    assert found.errors == 4
    assert node.hub.stats().stray_acks == 1


async def test_a_fan_out_counts_each_recipient(node):
    for user in ("ada", "bob"):
        client = await node.connect(user)
        await node.hub.join("r", client.id)
    node.hub.reset_stats()

    assert await node.hub.broadcast_room("r", "t") == 2
    assert node.hub.stats().out_messages == 2
    assert node.hub.stats().rooms == 1


async def test_metrics_hear_of_connections_messages_and_handlers(make_node):
    metrics = RecordingMetrics()
    node = await make_node(metrics=metrics)

    @node.on("slow:*")
    async def slow(ctx, msg):
        node.clock.pass_time(0.25)

    ada = await node.connect("ada")
    ada.say({"topic": "slow:thing"})
    await ada.ask({"topic": "nowhere"})
    await ada.vanish()

    assert metrics.of("connected") == [()]
    assert metrics.of("received") == [("slow:*",), ("-",)]
    assert metrics.of("handled") == [("slow:*", 0.25), ("-", 0.0)]
    assert metrics.of("failed") == [("handler_not_found",)]
    assert metrics.of("disconnected") == [(DisconnectReason.CONNECTION_LOST,)]


def test_what_did_not_fit_after_all_was_not_sent(clock):
    stats = Stats(clock, None, RecordingLogger())
    stats.sent(2)

    stats.take_back_sent()

    assert stats.out_messages == 1


def test_a_late_drop_does_not_count_below_zero(clock):
    """The counters may have been reset since the message was counted."""
    stats = Stats(clock, None, RecordingLogger())

    stats.take_back_sent()

    assert stats.out_messages == 0
