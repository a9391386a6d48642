"""To many at once: here first, then on the others, as the same bytes."""

import asyncio

import pytest

from eyewall.application.cluster.packet import Packet
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import Misuse
from eyewall.domain.identity import Where
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import FailureReason
from tests.application.engines import Bus
from tests.application.fakes import settle


async def joined(node, user, room="lab"):
    client = await node.connect(user)
    await node.hub.join(room, client.id)
    return client


async def heard(*clients):
    await settle()
    return [[m["data"] for m in client.heard()] for client in clients]


# --- rooms


async def test_a_rooms_members_hear_it_on_all_nodes_and_nobody_else(one, two):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    eve = await two.connect("eve")

    reached = await one.hub.broadcast_room("lab", "news", "flash", {"n": 1})

    assert reached == 1, "those of this node"
    await settle()
    (here,), (there,) = ada.heard(), bob.heard()
    assert here == there
    assert (here["topic"], here["event"], here["data"]) == ("news", "flash", {"n": 1})
    assert here["id"]
    assert eve.heard() == []


async def test_the_sender_hears_it_too_if_it_is_a_member(one):
    ada, _ = await joined(one, "ada"), await joined(one, "bob")

    assert await one.hub.emit_to_room("lab", Message("news", data=1)) == 2
    assert await heard(ada) == [[1]]


async def test_a_room_without_members_here_is_heard_elsewhere(one, two):
    bob = await joined(two, "bob")

    assert await one.hub.broadcast_room("lab", "news", data=1) == 0
    assert await heard(bob) == [[1]]


async def test_a_room_that_nobody_is_in_is_no_error(one):
    assert await one.hub.broadcast_room("lab", "news") == 0


async def test_a_message_travels_with_all_its_fields(one, two):
    bob = await joined(two, "bob")
    message = Message("news", "flash", 1, "m1", "ns", "v2", {"trace": "1"}, priority=Priority.HIGH)

    await one.hub.emit_to_room("lab", message)
    await settle()

    assert bob.heard() == [
        {
            "id": "m1",
            "topic": "news",
            "event": "flash",
            "namespace": "ns",
            "version": "v2",
            "data": 1,
            "headers": {"trace": "1"},
        }
    ]
    assert bob.link.frames[0].priority is Priority.HIGH


async def test_some_connections_are_left_out_wherever_they_are(one, two):
    ada, bob, phone = (
        await joined(one, "ada"),
        await joined(two, "bob"),
        await joined(two, "ada"),
    )

    reached = await one.hub.emit_to_room_except("lab", [ada.id, bob.id], Message("news", data=1))

    assert reached == 0
    assert await heard(ada, bob, phone) == [[], [], [1]]


@pytest.mark.parametrize("skip", [[], (), ["nobody"]], ids=repr)
async def test_leaving_out_nobody_is_everybody(one, skip):
    await joined(one, "ada")

    assert await one.hub.emit_to_room_except("lab", skip, Message("news")) == 1


async def test_one_connection_may_be_left_out_by_its_id(one):
    ada, _ = await joined(one, "ada"), await joined(one, "bob")

    assert await one.hub.emit_to_room_except("lab", ada.id, Message("news")) == 1


async def test_messages_of_one_sender_arrive_in_order_everywhere(one, two):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")

    for number in range(30):
        await one.hub.broadcast_room("lab", "news", data=number)

    assert await heard(ada, bob) == [list(range(30))] * 2


async def test_room_messages_and_direct_ones_keep_their_order(one):
    ada = await joined(one, "ada")

    await one.hub.broadcast_room("lab", "news", data=1)
    await one.hub.send_to_conn(ada.id, "news", data=2)
    await one.hub.broadcast("news", data=3)

    assert await heard(ada) == [[1, 2, 3]]


async def test_who_publishes_faster_than_the_node_can_write_is_slowed_down(one):
    ada = await joined(one, "ada")
    one.outbound.crowded = True
    sending = asyncio.create_task(one.hub.broadcast_room("lab", "news", data=1))
    await settle()
    assert not sending.done()

    one.outbound.crowded = False

    assert await sending == 1
    assert await heard(ada) == [[1]]


async def test_who_came_while_a_message_waited_gets_it_and_who_left_does_not(one):
    """The room is looked at when the message goes out, not before it waits."""
    ada = await joined(one, "ada")
    bob = await one.connect("bob")
    one.outbound.crowded = True
    sending = asyncio.create_task(one.hub.broadcast_room("lab", "news", data=1))
    await settle()
    await one.hub.leave("lab", ada.id)
    await one.hub.join("lab", bob.id)

    one.outbound.crowded = False

    assert await sending == 1
    assert await heard(ada, bob) == [[], [1]]


async def test_a_member_whose_queue_is_full_does_not_hold_up_the_others(one):
    ada = await one.connect("ada", queue=QueueConfig(size=1))
    await one.hub.join("lab", ada.id)
    bob = await joined(one, "bob")
    failures = []
    one.hub.on_queue_full(failures.append)
    ada.link.stalled = True

    for number in range(3):
        assert await one.hub.broadcast_room("lab", "news", data=number) == 2
    await settle()

    assert await heard(bob) == [[0, 1, 2]]
    assert [(f.reason, f.recipient) for f in failures] == [
        (FailureReason.BROADCAST_FULL, "lab")
    ] * 2
    assert one.hub.stats().drops == 2


async def test_a_failure_on_another_node_is_told_there(one, two):
    ada = await two.connect("ada", queue=QueueConfig(size=1))
    await two.hub.join("lab", ada.id)
    failures = []
    two.hub.on_queue_full(failures.append)
    ada.link.stalled = True

    for number in range(2):
        await one.hub.emit_to_room("lab", Message("news", data=number, id=f"m{number}"))
    await settle()

    (failure,) = failures
    assert (failure.recipient, failure.message.topic, failure.message.id) == ("lab", "news", "m1")


# --- everybody


async def test_a_broadcast_reaches_everybody_in_the_cluster(one, two):
    clients = [await node.connect(user) for node in (one, two) for user in ("ada", None)]

    assert await one.hub.broadcast("news", data=1) == 2
    assert await heard(*clients) == [[1]] * 4


async def test_a_raw_text_reaches_everybody_as_it_is(one, two):
    ada, bob = await one.connect("ada"), await two.connect("bob")

    assert await one.hub.broadcast_text("hello ü") == 1
    await settle()

    assert ada.heard() == bob.heard() == ["hello ü"]
    assert one.hub.stats().out_messages == 0, "it is no envelope"


# --- whoever fits


async def test_a_filter_means_this_node_and_a_where_the_cluster(one, two):
    ada, bob = await one.connect("ada", tags=["vip"]), await two.connect("bob", tags=["vip"])
    eve = await one.connect("eve")

    assert await one.hub.broadcast_with_filter(Message("a"), lambda m: "vip" in m.tags) == 1
    await settle()
    assert [[m["topic"] for m in c.heard()] for c in (ada, bob, eve)] == [["a"], [], []]
    assert await one.hub.broadcast_with_filter(Message("b"), Where(tags=["vip"])) == 1
    await settle()
    assert [[m["topic"] for m in c.heard()] for c in (ada, bob, eve)] == [["b"], ["b"], []]


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (Where(), "abc"),
        (Where(tags=["x"]), "ab"),
        (Where(tags=["x", "y"]), "b"),
        (Where(roles=["admin", "ops"]), "ac"),
        (Where(user_ids=["a", "c", "z"]), "ac"),
        (Where(attributes={"plan": "pro"}), "b"),
        (Where(attributes={"age": 7, "ok": None}), "c"),
        (Where(tags=["x"], roles=["admin"]), "a"),
        (Where(user_ids=["nobody"]), ""),
    ],
)
async def test_who_fits_a_where(one, two, where, fits):
    clients = {
        "a": await two.connect("a", tags=["x"], roles=["admin"]),
        "b": await two.connect("b", tags=["x", "y"], attributes={"plan": "pro"}),
        "c": await two.connect("c", roles=["ops"], attributes={"age": 7, "ok": None}),
    }

    await one.hub.broadcast_with_filter(Message("news", data=1), where)
    await settle()

    assert "".join(name for name, client in clients.items() if client.heard()) == fits


async def test_a_where_that_can_not_travel_is_refused_before_anybody_got_it(one):
    ada = await one.connect("ada", attributes={"key": (1,)})

    with pytest.raises(Misuse):
        await one.hub.broadcast_with_filter(Message("news"), Where(attributes={"key": (1,)}))

    assert ada.heard() == []


async def test_a_filter_has_to_be_one(one):
    with pytest.raises(ValueError, match="filter"):
        await one.hub.broadcast_with_filter(Message("news"), "vip")


# --- a bus that is away, or lies


async def test_a_bus_that_is_away_does_not_keep_it_from_the_own_members(make_node):
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    bus.away = True

    assert await one.hub.broadcast_room("lab", "news", data=1) == 1
    assert await one.hub.broadcast("news", data=2) == 1
    assert await one.hub.broadcast_text("3") == 1
    assert await one.hub.broadcast_with_filter(Message("news", data=4), Where()) == 1

    assert one.hub.stats().unsent == 4
    assert len(ada.heard()) == 4
    assert bob.heard() == []


GOOD = b'{"id":"1","topic":"news","data":1}'


@pytest.mark.parametrize(
    ("kind", "header", "payload"),
    [
        ("room", {}, GOOD),
        ("room", {"room": "lab"}, GOOD),
        ("room", {"room": 5, "p": 1}, GOOD),
        ("room", {"room": "lab", "p": 9}, GOOD),
        ("room", {"room": "lab", "p": 1, "x": "all"}, GOOD),
        ("room", {"room": "lab", "p": 1, "x": [[]]}, GOOD),
        ("room", {"room": "lab", "p": 1, "u": []}, GOOD),
        ("room", {"room": "lab", "p": 1}, b"garbage"),
        ("room", {"room": "lab", "p": 1}, b'{"id":"1"}'),
        ("room", {"room": "lab", "p": 1}, b'{"topic":"t","data":"\xff"}'),
        ("room", {"room": "lab", "p": 1}, b'{"event":"ack","ref":"x"}'),
        ("all", {}, GOOD),
        ("all", {"p": 1}, b""),
        ("text", {}, b"\xff"),
        ("where", {"p": 1}, GOOD),
        ("where", {"p": 1, "where": []}, GOOD),
        ("where", {"p": 1, "where": {"tags": 5}}, GOOD),
        ("where", {"p": 1, "where": {"colour": "red"}}, GOOD),
    ],
    ids=repr,
)
async def test_what_makes_no_sense_is_dropped_and_counted(one, kind, header, payload):
    ada = await joined(one, "ada")

    await one.bus.publish("eyewall:all", Packet("evil", kind, header, payload).pack())
    await settle()

    assert ada.heard() == []
    assert one.hub.stats().bad_packets == 1


async def test_what_comes_from_the_bus_is_not_published_again(make_node):
    bus = Bus()
    one, two, three = [await make_node(pubsub=bus) for _ in range(3)]
    for node in (one, two, three):
        await joined(node, "ada")
    bus.published.clear()

    await one.hub.broadcast_room("lab", "news")
    await settle()

    assert [channel for channel, _ in bus.published] == ["eyewall:room:lab"]


async def test_a_node_publishes_rooms_where_they_are_heard_only(make_node):
    """A node hears of rooms that it has, and of no others."""
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    await joined(one, "ada", "a")
    await joined(two, "bob", "b")

    assert bus.listeners_of("eyewall:room:a") == 1
    assert bus.listeners_of("eyewall:room:b") == 1
    consumed = []
    two.parts.stats.metrics.consumed = consumed.append
    await one.hub.broadcast_room("a", "news")
    await settle()
    assert consumed == []
