"""Pages of what rooms keep, for the application and for clients."""

import json

import pytest

from eyewall.application.dispatch import commands
from eyewall.application.rooms.history import encode_page
from eyewall.domain.envelope import Message, StreamPosition
from eyewall.domain.errors import RoomNotFound
from eyewall.domain.history import Entry, HistoryPage, Page, Position
from eyewall.domain.room import RoomOptions


@pytest.fixture
async def lab(node):
    """A room of five messages, numbered like their offsets."""
    await node.hub.create_room("lab", RoomOptions(history_size=5))
    for n in range(1, 6):
        await node.hub.broadcast_room("lab", "room:lab", data=n)
    return node


async def joined(node, user="ada", room="lab"):
    client = await node.connect(user)
    await node.hub.join(room, client.id)
    return client


async def ask(client, data, topic="system:history"):
    (answer,) = await client.ask({"id": "1", "topic": topic, "ack": True, "data": data})
    return answer["data"]


def numbers(messages):
    return [m["data"] if isinstance(m, dict) else m.data for m in messages]


# --- the application asks


async def test_the_newest_come_without_a_position(lab):
    page = await lab.hub.history("lab", limit=2)

    info = await lab.hub.room("lab")
    assert numbers(page.messages) == [4, 5]
    assert (page.epoch, page.offset) == (info.epoch, 5)
    assert page.messages[0].topic == "room:lab"
    assert page.messages[0].id
    assert page.messages[0].stream == StreamPosition("lab", page.epoch, 4)


async def test_pages_follow_each_other(lab):
    epoch = (await lab.hub.room("lab")).epoch

    first = await lab.hub.history("lab", (epoch, 0), 2)
    second = await lab.hub.history("lab", first.messages[-1].stream, 2)
    third = await lab.hub.history("lab", second.messages[-1].stream, 2)
    rest = await lab.hub.history("lab", third)

    assert [numbers(p.messages) for p in (first, second, third, rest)] == [[1, 2], [3, 4], [5], []]


async def test_what_was_trimmed_is_left_out(lab):
    await lab.hub.broadcast_room("lab", "room:lab", data=6)
    epoch = (await lab.hub.room("lab")).epoch

    page = await lab.hub.history("lab", {"epoch": epoch, "offset": 0}, 2)

    assert numbers(page.messages) == [2, 3]


async def test_of_another_epoch_nothing_is_given(lab):
    page = await lab.hub.history("lab", ("another", 2))

    assert page.messages == []
    assert (page.epoch == "another", page.offset) == (False, 5)


async def test_a_room_without_history_has_no_messages_and_no_position(node):
    await node.hub.create_room("den")

    assert await node.hub.history("den") == HistoryPage([], None, None)


async def test_a_room_that_is_not_there_is_an_error(node):
    with pytest.raises(RoomNotFound):
        await node.hub.history("nowhere")


@pytest.mark.parametrize(("since", "limit"), [(3, 10), (None, 0), (None, True), ({}, 1)], ids=repr)
async def test_what_is_no_position_or_limit_is_refused(lab, since, limit):
    with pytest.raises(ValueError, match=r"position|limit"):
        await lab.hub.history("lab", since, limit)


async def test_a_room_says_where_it_stands(node):
    created = await node.hub.create_room("lab", RoomOptions(history_size=5))
    await node.hub.broadcast_room("lab", "t")
    info = await node.hub.room("lab")

    assert (created.epoch, created.offset) == (info.epoch, 0)
    assert info.offset == 1
    plain = await node.hub.create_room("den")
    assert (plain.epoch, plain.offset) == (None, None)


# --- a client asks


async def test_a_client_gets_messages_as_they_were_sent(lab):
    ada = await joined(lab)
    await lab.hub.emit_to_room("lab", Message("news", "flash", {"a": [1]}, headers={"t": "1"}))
    (live,) = ada.heard()

    answer = await ask(ada, {"room": "lab", "limit": 2})

    assert answer["messages"][-1] == live
    assert numbers(answer["messages"])[0] == 5
    assert (answer["epoch"], answer["offset"]) == (live["stream"]["epoch"], 6)


async def test_a_client_pages_on_from_a_position(lab):
    ada = await joined(lab)
    epoch = (await lab.hub.room("lab")).epoch

    answer = await ask(ada, {"room": "lab", "since": {"epoch": epoch, "offset": 1}, "limit": 2})

    assert numbers(answer["messages"]) == [2, 3]
    assert answer["offset"] == 5


async def test_a_client_gets_nothing_from_a_room_that_keeps_nothing(node):
    ada = await joined(node, room="den")

    answer = await ask(ada, {"room": "den"})

    assert answer == {"message_id": "1", "status": "ok", "messages": []}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"since": 3}, "since"),
        ({"since": None}, "since"),
        ({"since": {"epoch": "e"}}, "since"),
        ({"since": {"epoch": "e", "offset": -1}}, "since"),
        ({"since": {"epoch": "e" * 65, "offset": 1}}, "since"),
        ({"limit": 0}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": True}, "limit"),
    ],
    ids=repr,
)
async def test_a_clients_mistakes_are_named(lab, fields, wrong):
    ada = await joined(lab)

    answer = await ask(ada, {"room": "lab", **fields})

    assert answer["code"] == "validation"
    assert list(answer["fields"]) == [wrong]


async def test_only_members_may_read(lab):
    eve = await lab.connect("eve")

    assert (await ask(eve, {"room": "lab"}))["code"] == "not_a_member"


async def test_what_was_not_for_a_connection_is_not_in_its_answer(lab):
    ada, bob = await joined(lab), await joined(lab, "bob")
    await lab.hub.emit_to_room_except("lab", ada.id, Message("t", data="not for ada"))
    assert ada.heard() == []

    assert "not for ada" not in numbers((await ask(ada, {"room": "lab"}))["messages"])
    bob.heard()
    assert "not for ada" in numbers((await ask(bob, {"room": "lab"}))["messages"])


async def test_an_answer_is_bounded_in_bytes(lab, monkeypatch):
    """Without a position the newest are kept, from a position the next ones."""
    ada = await joined(lab)
    size = len(json.dumps((await ask(ada, {"room": "lab"}))["messages"][0]))
    monkeypatch.setattr(commands, "MAX_PAGE_BYTES", 2 * size)
    epoch = (await lab.hub.room("lab")).epoch

    newest = await ask(ada, {"room": "lab"})
    next_ones = await ask(ada, {"room": "lab", "since": {"epoch": epoch, "offset": 0}})

    assert numbers(newest["messages"]) == [4, 5]
    assert numbers(next_ones["messages"]) == [1, 2]


def test_one_message_goes_out_however_large_it_is():
    page = Page([Entry(b'{"topic":"t"}')], 1, Position("e", 1), recovered=True)

    for newest in (True, False):
        assert len(encode_page("lab", page, "c1", 1, newest=newest)) == 1


async def test_a_publish_says_where_the_message_stands(lab):
    ada = await joined(lab)

    first, answer = await ada.ask(
        {"id": "1", "topic": "system:publish", "ack": True, "data": {"room": "lab", "data": 6}}
    )

    assert answer["data"] == {
        "message_id": "1",
        "status": "ok",
        "room": "lab",
        "delivered": 1,
        "epoch": first["stream"]["epoch"],
        "offset": 6,
    }


async def test_a_join_says_where_the_room_stands(lab):
    ada = await lab.connect("ada")

    answer = await ask(ada, {"room": "lab"}, "system:join")

    assert (answer["epoch"], answer["offset"]) == ((await lab.hub.room("lab")).epoch, 5)
