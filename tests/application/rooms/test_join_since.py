"""Joining with ``since``: what the room keeps from there, the answer, and then what is live."""

import itertools
import json
import random

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.application.lifecycle import resume as module
from eyewall.application.lifecycle.resume import READ_TIMEOUT
from eyewall.application.rooms.stream import CHECK_PERIOD
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.history import MAX_OFFSET, Entry, Retention
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.room import RoomOptions, RoomPolicy
from tests.application.engines import Bus, Engine
from tests.application.fakes import settle

KEPT = RoomOptions(history_size=50)
NUMBERS = itertools.count()


@pytest.fixture
def store():
    return Engine(MemoryHistory())


@pytest.fixture
def pair_config(store):
    return {"client_commands": True, "history": store}


@pytest.fixture
async def one(one):
    """The first node of the pair, which has created a room."""
    await one.hub.create_room("lab", KEPT)
    return one


async def publish(node, *numbers, room="lab"):
    for number in numbers:
        await node.hub.emit_to_room(room, Message("news", data=number))


async def started(client, since, room="lab"):
    """Ask to be let in, and wait for nothing but the loop's rest."""
    data = {"room": room, "since": since}
    client.say({"id": f"j{next(NUMBERS)}", "topic": "system:join", "ack": True, "data": data})
    await settle()


def order(client):
    """What a client has heard: values, and what the answer says where that came."""
    return [m["data"] if m["topic"] == "news" else _said(m) for m in client.heard()]


def _said(message):
    data = message["data"]
    if message["event"] != "ack":
        return message["topic"]
    return data.get("code", data.get("recovered"))


async def join(node, since, room="lab", user="ada"):
    client = await node.connect(user, session=True)
    await started(client, since, room)
    return client, order(client)


async def epoch(node, room="lab"):
    return (await node.hub.room(room)).epoch


# --- what is sent


@pytest.mark.parametrize(
    ("since", "sent"),
    [("start", [1, 2, 3]), (2, [2, 3]), (3, [1, 2, 3]), (4, [1, 2, 3]), (0, [])],
)
async def test_what_is_wanted_comes_in_order_then_the_answer_then_what_is_live(one, since, sent):
    await publish(one, 1, 2, 3)

    ada, heard = await join(one, since)
    await publish(one, 4)

    assert heard == [*sent, True]
    assert order(ada) == [4]
    assert ada.conn.rooms == {"lab"}


async def test_it_comes_after_a_position(one):
    await publish(one, 1, 2, 3)

    _, heard = await join(one, {"epoch": await epoch(one), "offset": 1})

    assert heard == [2, 3, True]


async def test_the_answer_is_that_of_a_join_and_says_where_the_client_stands(one):
    await publish(one, 1, 2)
    ada = await one.connect("ada")

    [*_, answer] = await ada.ask(
        {"id": "j", "topic": "system:join", "ack": True, "data": {"room": "lab", "since": 1}}
    )

    assert answer["data"] == {
        "message_id": "j",
        "status": "ok",
        "room": "lab",
        "role": "member",
        "members": 1,
        "epoch": await epoch(one),
        "offset": 2,
        "recovered": True,
    }


async def test_without_since_nothing_is_sent_and_nothing_said_of_it(one):
    await publish(one, 1)
    ada = await one.connect("ada")

    [answer] = await ada.ask(
        {"id": "j", "topic": "system:join", "ack": True, "data": {"room": "lab"}}
    )

    assert "recovered" not in answer["data"]


async def test_every_message_bears_its_position(one):
    await publish(one, 1, 2)
    ada = await one.connect("ada")
    await started(ada, "start")

    first, second, _ = ada.heard()

    stream = {"room": "lab", "epoch": await epoch(one)}
    assert [first["stream"], second["stream"]] == [stream | {"offset": n} for n in (1, 2)]


@pytest.mark.parametrize("since", ["start", 3, 0])
async def test_where_nothing_was_ever_said_all_of_it_comes(one, since):
    _, heard = await join(one, since)

    assert heard == [True]


async def test_more_than_a_page_comes_whole(one):
    await one.hub.update_room("lab", history_size=500)
    await publish(one, *range(200))

    _, heard = await join(one, "start")

    assert heard == [*range(200), True]


async def test_what_was_not_for_the_connection_is_left_out(one):
    ada = await one.connect("ada")
    await publish(one, 1)
    await one.hub.emit_to_room_except("lab", [ada.id], Message("news", data=2))
    await publish(one, 3)

    await started(ada, "start")

    assert order(ada) == [1, 3, True]


async def test_a_message_that_can_not_be_read_holds_up_none_of_the_others(one):
    await publish(one, 1)
    await one.history.append("lab", Entry(b"not a message"), Retention(50), one.clock.wall())
    await publish(one, 3)

    assert (await join(one, "start"))[1] == [1, 3, True]


async def test_the_newest_are_the_clusters_newest(make_node):
    """Also where the members of this node have not had them yet."""
    bus = Bus()
    one, two = [await make_node(client_commands=True, pubsub=bus) for _ in range(2)]
    await one.hub.create_room("lab", KEPT)
    bob, _ = await join(two, 0, user="bob")
    bus.deaf.add("eyewall:room:lab")
    await publish(one, 1, 2)
    assert order(bob) == []

    ada, heard = await join(two, 1)
    bus.deaf.clear()
    await publish(one, 3)
    await settle()

    assert heard == [2, True]
    assert order(ada) == [3]
    assert order(bob) == [1, 2, 3]


async def test_what_was_kept_while_the_members_were_being_served_comes_before_the_answer(
    make_node, store
):
    """A reading of the store that has begun before may not have the last of it."""
    bus = Bus()
    one, two = [await make_node(client_commands=True, pubsub=bus, history=store) for _ in "ab"]
    await one.hub.create_room("lab", KEPT)
    bob, _ = await join(two, 0, user="bob")
    bus.deaf.add("eyewall:room:lab")
    await publish(one, 1)
    await two.advance(CHECK_PERIOD)  # a room is read when it has stood still for that long
    store.after.add("read")
    await two.advance(CHECK_PERIOD)
    assert store.calls[-1] == "read", "it has found 1, and is not back yet"
    await publish(one, 2)

    ada = await two.connect("ada")
    await started(ada, 1)
    store.go_on()
    await settle()

    assert order(ada) == [2, True]
    assert order(bob) == [1, 2]


# --- what is kept no longer


@pytest.mark.parametrize(
    ("since", "sent"), [("start", [3, 4, 5]), (4, [3, 4, 5]), (3, [3, 4, 5]), (9, [3, 4, 5])]
)
async def test_what_is_left_of_more_is_sent_and_not_said_to_be_all(one, since, sent):
    await one.hub.update_room("lab", history_size=3)
    await publish(one, 1, 2, 3, 4, 5)

    ada, heard = await join(one, since)
    await publish(one, 6)

    assert heard == [*sent, since == 3]
    assert order(ada) == [6]


async def test_so_it_is_after_a_position_that_was_trimmed(one):
    await one.hub.update_room("lab", history_size=2)
    await publish(one, 1, 2, 3, 4)
    here = await epoch(one)

    assert (await join(one, {"epoch": here, "offset": 1}))[1] == [3, 4, False]
    assert (await join(one, {"epoch": here, "offset": 2}, user="bob"))[1] == [3, 4, True]


async def test_of_another_epoch_everything_is_sent(one):
    await publish(one, 1, 2)

    ada, heard = await join(one, {"epoch": "another", "offset": 1})
    await publish(one, 3)

    assert heard == [1, 2, False]
    assert order(ada) == [3]


async def test_of_another_epoch_and_trimmed_what_is_left_is_sent(one):
    await one.hub.update_room("lab", history_size=1)
    await publish(one, 1, 2)

    assert (await join(one, {"epoch": "another", "offset": 1}))[1] == [2, False]


async def test_a_position_that_was_never_reached_gets_nothing(one):
    await publish(one, 1)

    ada, heard = await join(one, {"epoch": await epoch(one), "offset": 7})
    await publish(one, 2)

    assert heard == [False]
    assert order(ada) == [2]


async def test_what_has_expired_is_not_sent(one):
    await one.hub.update_room("lab", history_ttl=10)
    await publish(one, 1)
    one.clock.pass_time(5)
    await publish(one, 2)
    one.clock.pass_time(5)

    assert (await join(one, "start"))[1] == [2, False]
    one.clock.pass_time(5)
    ada, heard = await join(one, "start", user="bob")
    await publish(one, 3)

    assert heard == [False]
    assert order(ada) == [3]


async def test_an_epoch_that_the_members_here_have_not_heard_of_is_the_present_one(one, store):
    """The store came back empty, and they are told of it as well."""
    await publish(one, 1)
    bob, _ = await join(one, 0, user="bob")
    stood = await epoch(one)
    await store.inner.remove("lab")
    await store.inner.append("lab", _entry(2), Retention(50), one.clock.wall())

    ada, heard = await join(one, {"epoch": stood, "offset": 1})
    await publish(one, 3)

    assert heard == [2, False]
    assert order(ada) == [3]
    assert order(bob) == ["system:gap", 2, 3]


async def test_an_epoch_that_begins_while_it_is_read_is_the_one_to_send(one, store):
    await publish(one, 1)
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    reads = itertools.count()
    call = store._call

    async def emptied(name, *args):
        if name == "read" and next(reads) == 1:
            await store.inner.remove("lab")
            await store.inner.append("lab", _entry(2), Retention(50), one.clock.wall())
        return await call(name, *args)

    store._call = emptied
    await started(ada, "start")
    await publish(one, 3)

    assert order(ada) == ["system:gap", 2, False, 3]


def _entry(number):
    return Entry(json.dumps({"id": f"x{number}", "topic": "news", "data": number}).encode())


async def test_what_is_trimmed_while_it_is_sent_is_not_pretended(one, store, monkeypatch):
    monkeypatch.setattr(module, "MESSAGES_PER_READ", 2)
    await one.hub.update_room("lab", history_size=4)
    await publish(one, 1, 2, 3, 4)
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    pages = store.inner.read
    reads = itertools.count()

    async def trimming(*args):
        page = await pages(*args)
        if next(reads) == 1:  # the first page is read, and on its way
            await publish(one, 5, 6, 7)
        return page

    monkeypatch.setattr(store.inner, "read", trimming)
    await started(ada, "start")

    assert order(ada) == [1, 2, 4, 5, 6, 7, False]


@pytest.mark.parametrize(("since", "recovered"), [("start", False), (3, False), (0, True)])
async def test_a_room_without_history_has_nothing_to_send(one, since, recovered):
    await publish(one, 1, room="hall")

    ada, heard = await join(one, since, room="hall")
    await publish(one, 2, room="hall")

    assert heard == [recovered]
    assert order(ada) == [2]


async def test_a_position_in_a_room_without_history_is_none(one):
    assert (await join(one, {"epoch": "e", "offset": 0}, room="hall"))[1] == [False]


async def test_a_history_that_was_switched_off_has_nothing_to_send(one):
    await publish(one, 1)
    await one.hub.update_room("lab", history_size=0)

    ada, heard = await join(one, "start")
    await publish(one, 2)

    assert heard == [False]
    assert order(ada) == [2]


async def test_a_history_that_begins_anew_begins_with_its_own_first(one):
    await publish(one, 1)
    await one.hub.update_room("lab", history_size=0)
    await one.hub.update_room("lab", history_size=5)
    await publish(one, 2)

    assert (await join(one, "start"))[1] == [2, True]


# --- a member


async def test_who_is_in_already_gets_it_again(one):
    ada, _ = await join(one, 0)
    await publish(one, 1, 2)
    assert order(ada) == [1, 2]

    await started(ada, "start")
    await publish(one, 3)
    await started(ada, 1)

    assert order(ada) == [1, 2, True, 3, 3, True]
    assert (await one.hub.room("lab")).members == 1


async def test_hooks_and_counts_hear_of_one_join(one):
    joined = []
    one.hub.on_join(lambda room_id, conn: joined.append(room_id))
    ada, _ = await join(one, "start")

    await started(ada, "start")

    assert joined == ["lab"]


async def test_who_has_left_gets_it_when_it_joins_again(one):
    ada, _ = await join(one, "start")
    await publish(one, 1)
    await one.hub.leave("lab", ada.id)
    ada.heard()

    await started(ada, "start")

    assert order(ada) == [1, True]


# --- while it is sent


@pytest.mark.parametrize("held_back", ["before", "after"])
@pytest.mark.parametrize("publisher", ["here", "there"])
async def test_what_is_published_meanwhile_comes_once_and_before_the_answer(
    one, make_node, store, held_back, publisher
):
    two = await make_node(client_commands=True, history=store)
    bob, _ = await join(one, 0, user="bob")
    await publish(one, 1, 2)
    bob.heard()
    ada = await one.connect("ada")
    await _reading(store, held_back)

    await started(ada, "start")
    await publish(one if publisher == "here" else two, 3)
    await settle()
    store.go_on()
    await settle()
    await publish(one, 4)

    assert order(ada) == [1, 2, 3, True, 4]
    assert order(bob) == [3, 4]


async def _reading(store, held_back="after"):
    """Let the reading of what is sent wait, which is the second one of a join."""
    reads = itertools.count()
    call = store._call

    async def second(name, *args):
        if name == "read" and next(reads) == 1:
            getattr(store, held_back).add("read")
        return await call(name, *args)

    store._call = second


@pytest.mark.parametrize("why", ["kick", "ban", "leave", "delete"])
async def test_who_is_out_before_the_answer_is_refused(one, store, why):
    await publish(one, 1)
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    await _reading(store)
    await started(ada, "start")

    if why == "kick":
        await one.hub.kick_user_from_room("ada", "lab")
    elif why == "ban":
        await one.hub.ban("lab", "ada")
    elif why == "leave":
        await one.hub.leave("lab", ada.id)
    else:
        await one.hub.delete_room("lab")
    store.go_on()
    await settle()
    told = [] if why == "leave" else ["system:kicked"]

    assert order(ada) == [*told, "not_a_member"]
    assert ada.conn.rooms == frozenset()
    await publish(one, 2)
    assert order(ada) == []


async def test_who_is_put_out_and_let_in_again_meanwhile_gets_what_comes_from_then_on(one, store):
    await publish(one, 1)
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    await _reading(store)
    await started(ada, "start")

    await one.hub.kick_user_from_room("ada", "lab")
    await one.hub.join("lab", ada.id)
    await publish(one, 2)
    store.go_on()
    await settle()

    assert order(ada) == ["system:kicked", 2, False]


async def test_who_ends_meanwhile_is_sent_and_held_nothing(one, store):
    await publish(one, *range(40))
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    await _reading(store)
    await started(ada, "start")

    await ada.vanish()
    store.go_on()
    await settle()

    assert ada.heard() == []
    assert (await one.hub.room("lab")).members == 1
    assert not one.parts.streams.is_held("lab", ada.link)


async def test_a_history_that_ends_meanwhile_lets_the_member_go_on(one, store):
    await publish(one, 1)
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    await _reading(store)
    await started(ada, "start")

    await one.hub.update_room("lab", history_size=0)
    store.go_on()
    await settle()
    await publish(one, 2)

    *_, answer, live = ada.heard()
    assert answer["data"]["recovered"] is False
    assert "offset" not in answer["data"]
    assert (live["data"], "stream" in live) == (2, False)


# --- refused


@pytest.mark.parametrize(
    "since",
    [
        None,
        True,
        -1,
        1.5,
        MAX_OFFSET + 1,
        "",
        "end",
        "5",
        [],
        ["e", 1],
        {},
        {"epoch": "e"},
        {"epoch": "e", "offset": -1},
        {"epoch": "e", "offset": True},
        {"epoch": 5, "offset": 1},
        {"epoch": "e" * 65, "offset": 1},
    ],
)
async def test_what_is_no_beginning_is_refused_and_nobody_joined(one, since):
    ada = await one.connect("ada")

    [answer] = await ada.ask(
        {"id": "j", "topic": "system:join", "ack": True, "data": {"room": "lab", "since": since}}
    )

    assert answer["data"]["code"] == "validation"
    assert list(answer["data"]["fields"]) == ["since"]
    assert ada.conn.rooms == frozenset()


async def test_the_largest_number_that_every_client_can_hold_is_one(one):
    await publish(one, 1)

    assert (await join(one, MAX_OFFSET))[1] == [1, True]


@pytest.mark.parametrize("why", ["ban", "private", "full", "controller"])
async def test_who_is_not_let_in_is_sent_nothing(make_node, why):
    class Door:
        def can_publish(self, meta, topic, event):
            return True

        def can_subscribe(self, meta, room_id):
            return why != "controller" or meta.user_id != "ada"

    one = await make_node(client_commands=True, access_controller=Door())
    policy = RoomPolicy.PRIVATE if why == "private" else RoomPolicy.PUBLIC
    options = RoomOptions(history_size=5, policy=policy, capacity=1 if why == "full" else None)
    await one.hub.create_room("lab", options)
    if why == "full":
        await join(one, 0, user="bob")
    if why == "ban":
        await one.hub.ban("lab", "ada")
    await publish(one, 1)

    ada, heard = await join(one, "start")

    code = {"full": "room_full", "controller": "forbidden"}.get(why, "join_forbidden")
    assert heard == [code]
    assert ada.conn.rooms == frozenset()


@pytest.mark.parametrize("others", [False, True])
async def test_while_the_store_is_away_nobody_comes_in(one, store, others):
    """Also where a plain join would do, because this node knows where the room stands."""
    if others:
        await join(one, 0, user="bob")
    await publish(one, 1)
    joined = []
    one.hub.on_join(lambda room_id, conn: joined.append(conn.id))
    store.away = True

    ada, heard = await join(one, "start")
    store.away = False
    await settle()

    assert heard == ["unavailable"]
    assert ada.conn.rooms == frozenset()
    assert joined == []
    assert (await one.hub.room("lab")).members == others
    await started(ada, "start")
    assert order(ada) == [1, True]


async def test_while_the_store_is_away_a_member_stays_one(one, store):
    ada, _ = await join(one, 0)
    store.away = True

    await started(ada, "start")
    store.away = False
    await publish(one, 1)

    assert order(ada) == ["unavailable", 1]


async def test_a_store_that_goes_away_while_it_is_read_fills_nothing(one, store, monkeypatch):
    """The member is in by then, and has the rest to load anew."""
    monkeypatch.setattr(module, "MESSAGES_PER_READ", 2)
    await publish(one, 1, 2, 3)
    await join(one, 0, user="bob")
    ada = await one.connect("ada")
    reads = itertools.count()
    call = store._call

    async def second_page(name, *args):
        if name == "read" and next(reads) == 2:
            store.away = True
        return await call(name, *args)

    store._call = second_page
    await started(ada, "start")
    store.away = False
    await publish(one, 4)

    assert order(ada) == [1, 2, False, 4]


async def test_a_connection_that_is_in_too_many_rooms_is_ended(one, monkeypatch):
    monkeypatch.setattr("eyewall.application.rooms.membership.MAX_ROOMS", 1)
    ada, _ = await join(one, "start")

    await started(ada, "start", room="hall")

    assert ada.closed is DisconnectReason.POLICY_VIOLATION


async def test_the_answer_is_not_remembered_for_another_connection(one):
    """What is about the connection itself is asked anew after a cut."""
    ada = await one.connect("ada", session=True)
    request = {"topic": "system:join", "ack": True, "data": {"room": "lab", "since": "start"}}
    await publish(one, 1)
    await ada.ask({"id": "same", **request})
    await ada.vanish()
    again = await one.connect("ada", session=True)
    data = {"session": ada.welcome["session"], "rooms": {}}
    await again.ask({"id": "r", "topic": "system:resume", "ack": True, "data": data})

    again.say({"id": "same", **request})
    await settle()

    assert order(again) == [1, True]


# --- clients that do not read


async def slow_client(node, said=40, size=8):
    await publish(node, *range(1, said + 1))
    ada = await node.connect("ada", queue=QueueConfig(size=size))
    ada.link.stalled = True
    await started(ada, "start")
    return ada


async def test_the_replay_never_overflows_the_queue(one):
    ada = await slow_client(one)

    await ada.read_in_steps()

    assert order(ada) == [*range(1, 41), True]
    assert one.hub.stats().drops == 0


async def test_who_does_not_read_in_time_is_told_of_a_gap_when_it_has(one):
    ada = await slow_client(one)

    await one.advance(READ_TIMEOUT)
    ada.link.read()
    await settle()

    heard = ada.heard()
    news = [m for m in heard if m["topic"] == "news"]
    stands = {k: v for k, v in news[-1]["stream"].items() if k != "room"}
    [answer] = [m["data"] for m in heard if m.get("event") == "ack"]
    [gap] = [m["data"] for m in heard if m["topic"] == "system:gap"]
    assert len(news) < 40
    assert answer["recovered"], "up to the place that the answer names"
    assert {"epoch": answer["epoch"], "offset": answer["offset"]} == stands
    assert gap == {"room": "lab", **stands}
    data = {"rooms": {"lab": stands}}
    rest = await ada.ask({"id": "r", "topic": "system:resume", "ack": True, "data": data})
    assert [m["data"] for m in [*news, *rest[:-1]]] == list(range(1, 41))


# --- against a model


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_each_join_gets_one_piece_and_goes_on_from_it(make_node, seed):
    """Random publishing, trimming, joins and leaves, on two nodes: a client holds one piece
    of the history without a hole, which begins where it asked for if that is said."""
    luck = random.Random(seed)
    nodes = [await make_node(client_commands=True) for _ in range(2)]
    size = luck.choice([3, 10, 100])
    await nodes[0].hub.create_room("lab", RoomOptions(history_size=size, auto_cleanup=False))
    ada = await nodes[0].connect("ada")
    here = await epoch(nodes[0])
    published, got, live = 0, [], False
    for _ in range(60):
        if luck.random() < 0.7:
            published += 1
            await publish(luck.choice(nodes), published)
            await settle()
            got += order(ada) if live else []
            continue
        if luck.random() < 0.5:
            await nodes[0].hub.leave("lab", ada.id)
        place = luck.randrange(published + 1)
        since = luck.choice(["start", luck.randrange(12), {"epoch": here, "offset": place}])
        first = {"start": 1}.get(since) if isinstance(since, str) else None
        if isinstance(since, int):
            first = max(1, published - since + 1)
        first = place + 1 if first is None else first
        await started(ada, since)
        *got, recovered = order(ada)
        live = True
        oldest = max(first, published - size + 1)
        assert got == list(range(oldest, published + 1))
        assert recovered == (oldest == first)
    if live:
        assert got == list(range(got[0], published + 1)) if got else True


async def test_nothing_is_left_of_a_join(one):
    await publish(one, 1)
    ada, _ = await join(one, "start")

    assert not one.parts.streams.is_held("lab", ada.link)
