"""The chat's server side, through real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from eyewall import ConnMeta, RoomId, Server, Settings, UserId
from eyewall.adapters.history import MemoryHistory
from eyewall.settings.groups import AuthSettings
from tests.entrypoints.chat_support import Refusal, chat_server, visitors

Visit = Callable[..., Any]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with chat_server() as server:
        yield server


@pytest.fixture
async def visit(server: Server) -> AsyncIterator[Visit]:
    async with visitors(server) as visit:
        yield visit


# --- rooms


async def test_there_is_a_lobby_before_anybody_comes(visit):
    ada = await visit("ada")

    answer = await ada.request("chat:rooms")

    assert answer == {"rooms": [{"id": "general", "members": 0}]}


async def test_a_room_that_is_created_is_listed_and_can_be_joined(visit):
    ada = await visit("ada")

    assert await ada.request("chat:create", {"room": " My   Plots "}) == {"room": "my plots"}
    await ada.request("system:join", {"room": "my plots"})

    rooms = (await ada.request("chat:rooms"))["rooms"]
    assert {"id": "my plots", "members": 1} in rooms


async def test_creating_a_room_again_changes_nothing(visit):
    """A page that comes back after a cut can't know whether its rooms are still there."""
    ada, ben = await visit("ada"), await visit("ben")
    await ada.enter("plots")

    assert await ben.request("chat:create", {"room": "plots"}) == {"room": "plots"}

    assert {"id": "plots", "members": 1} in (await ben.request("chat:rooms"))["rooms"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 33, "a\u202eb", "a\x00b"])
async def test_a_room_needs_a_readable_name(visit, name):
    ada = await visit("ada")

    with pytest.raises(Refusal) as refusal:
        await ada.request("chat:create", {"room": name})

    assert refusal.value.code == "validation"
    assert "room" in refusal.value.data["fields"]


async def test_the_number_of_rooms_is_bounded(visit):
    ada = await visit("ada")
    for number in range(49):
        await ada.request("chat:create", {"room": f"r{number}"})

    with pytest.raises(Refusal) as refusal:
        await ada.request("chat:create", {"room": "one too many"})

    assert refusal.value.code == "overloaded"
    assert await ada.request("chat:create", {"room": "r7"}) == {"room": "r7"}


async def test_members_see_who_comes_and_goes(visit):
    ada = await (await visit("ada")).enter("general")

    ben = await (await visit("ben")).enter("general")
    came = await ada.receive("room:general", "join")
    while came["user_id"] != "ben":
        came = await ada.receive("room:general", "join")
    await ben.close()

    assert came == {"user_id": "ben", "connections": 1}
    assert await ada.receive("room:general", "leave") == {"user_id": "ben", "connections": 0}


# --- talking


async def test_what_is_said_reaches_everybody_in_the_room_signed(visit):
    ada = await (await visit("ada")).enter("general")
    ben = await (await visit("ben")).enter("general")

    answer = await ada.request("chat:say", {"room": "general", "text": "hello"}, id="m1")
    heard = [await visitor.receive("chat:said") for visitor in (ada, ben)]

    assert answer == {}
    assert heard[0] == heard[1]
    said = {"id": "m1", "room": "general", "from": "ada", "text": "hello"}
    assert heard[0] == {**said, "at": heard[0]["at"]}


async def test_only_members_may_speak(visit):
    ada = await (await visit("ada")).enter("general")
    ben = await visit("ben")

    with pytest.raises(Refusal) as refusal:
        await ben.request("chat:say", {"room": "general", "text": "hello"})

    assert refusal.value.code == "not_a_member"
    await ada.request("chat:rooms")
    assert not [m for m in ada.inbox if m["topic"] == "chat:said"]


async def test_nobody_can_speak_in_another_name(visit):
    """The page believes what comes as chat:said, and a client can't bring that about."""
    ada = await (await visit("ada")).enter("general")
    mallory = await (await visit("mallory")).enter("general")
    forged = {"room": "general", "from": "ben", "text": "trust me"}

    await mallory.request("system:publish", {"room": "general", "event": "said", "data": forged})
    for topic in ("chat:said", "room:general"):
        with pytest.raises(Refusal):
            await mallory.request(topic, forged)
    await mallory.request("chat:say", forged)

    assert (await ada.receive("chat:said"))["from"] == "mallory"
    assert not [m for m in ada.inbox if m["topic"] == "chat:said"]


@pytest.mark.parametrize("event", ["join", "leave", "typing"])
async def test_nobody_can_pretend_that_somebody_came_or_left(visit, event):
    mallory = await (await visit("mallory")).enter("general")

    with pytest.raises(Refusal):
        await mallory.request(
            "system:publish", {"room": "general", "event": event, "data": {"user_id": "ada"}}
        )


async def test_other_programs_may_still_publish(visit):
    """``eyewall serve`` offers all client commands; the page ignores what it can't trust."""
    ada = await (await visit("ada")).enter("general")

    answer = await ada.request("system:publish", {"room": "general", "data": {"x": 1}})

    assert answer["delivered"] == 1
    assert await ada.receive("room:general", "message") == {"x": 1}


@pytest.mark.parametrize("text", ["", " \n ", "x" * 4001, 7, None])
async def test_a_message_needs_a_text_of_sensible_length(visit, text):
    ada = await (await visit("ada")).enter("general")

    with pytest.raises(Refusal) as refusal:
        await ada.request("chat:say", {"room": "general", "text": text})

    assert refusal.value.code == "validation"
    assert "text" in refusal.value.data["fields"]


async def test_others_see_who_is_typing(visit):
    ada = await (await visit("ada")).enter("general")
    ben = await (await visit("ben")).enter("general")

    await ada.request("system:typing", {"room": "general", "typing": True})

    assert await ben.receive("room:general", "typing") == {"user_id": "ada", "typing": True}


async def test_a_late_comer_can_ask_for_what_was_said(visit):
    ada = await (await visit("ada")).enter("plots")
    for text in ("one", "two"):
        await ada.request("chat:say", {"room": "plots", "text": text})

    ben = await (await visit("ben")).enter("plots")
    page = await ben.request("system:history", {"room": "plots"})

    assert [m["data"]["text"] for m in page["messages"]] == ["one", "two"]
    assert [m["data"]["from"] for m in page["messages"]] == ["ada", "ada"]


async def test_a_room_keeps_a_hundred_messages_for_a_day(server, visit):
    await (await visit("ada")).enter("plots")

    options = [(await server.hub.room(room)).options for room in ("general", "plots")]

    assert [(o.history_size, o.history_ttl) for o in options] == [(100, 86_400.0)] * 2


async def test_a_room_that_a_program_has_joined_keeps_nothing_until_somebody_opens_it(visit):
    nobody, ada = await visit(), await visit("ada")
    await nobody.request("system:join", {"room": "lab"})
    await nobody.request("system:publish", {"room": "lab", "data": 1})
    assert await nobody.request("system:history", {"room": "lab"}) == {"messages": []}

    await ada.enter("lab")
    await ada.request("chat:say", {"room": "lab", "text": "hello"})

    page = await nobody.request("system:history", {"room": "lab"})
    assert [m["data"]["text"] for m in page["messages"]] == ["hello"]


async def test_rooms_that_programs_have_joined_count_when_they_are_opened(visit):
    """Each that is opened keeps messages: there is no way round the bound."""
    nobody, ada = await visit(), await visit("ada")
    for number in range(51):
        await nobody.request("system:join", {"room": f"r{number}"})

    with pytest.raises(Refusal) as refusal:
        await ada.request("chat:create", {"room": "r7"})

    assert refusal.value.code == "overloaded"
    assert await ada.request("chat:create", {"room": "general"}) == {"room": "general"}


async def test_large_messages_of_programs_take_no_more_memory(visit):
    """A room keeps half a MiB, however large its hundred messages are."""
    nobody = await (await visit("ada")).enter("plots")
    for number in range(10):
        await nobody.request("system:publish", {"room": "plots", "data": "x" * 200_000})
        answer = await nobody.request("system:history", {"room": "plots"})
        assert len(answer["messages"]) == min(number + 1, 2)


async def test_the_operators_history_is_kept():
    """Who brings a store has it used."""
    mine = MemoryHistory()
    async with chat_server(history=mine) as server, visitors(server) as visit:
        ada = await (await visit("ada")).enter("plots")
        await ada.request("chat:say", {"room": "plots", "text": "hello"})

    assert (await mine.position(RoomId("plots"))).offset == 1


# --- in private


async def test_a_private_message_is_delivered_when_it_was_acknowledged(visit):
    ada, ben, cleo = await visit("ada"), await visit("ben"), await visit("cleo")

    answer = await ada.request("chat:private", {"to": "ben", "text": "hi"}, id="p1")
    note = await ben.receive("chat:private")

    assert answer == {"delivered": 1, "online": True}
    assert note == {"id": "p1", "from": "ada", "to": "ben", "text": "hi", "at": note["at"]}
    await cleo.request("chat:rooms")
    assert not [m for m in cleo.inbox if m["topic"] == "chat:private"]


async def test_every_window_of_the_recipient_counts(visit):
    ada, _, _ = await visit("ada"), await visit("ben"), await visit("ben")

    assert await ada.request("chat:private", {"to": "ben", "text": "hi"}) == {
        "delivered": 2,
        "online": True,
    }


async def test_who_is_not_there_gets_nothing(visit):
    ada = await visit("ada")

    answer = await ada.request("chat:private", {"to": "nobody", "text": "hi"})

    assert answer == {"delivered": 0, "online": False}


async def test_the_senders_other_windows_see_it_too(visit):
    ada, other, _ = await visit("ada"), await visit("ada"), await visit("ben")

    await ada.request("chat:private", {"to": "ben", "text": "hi"}, id="p1")

    assert (await other.receive("chat:private"))["id"] == "p1"


async def test_a_silent_recipient_holds_up_nothing_else(visit):
    """Messages to others, and to rooms, go on while one recipient is waited for."""
    ada = await (await visit("ada")).enter("general")
    silent = await visit("silent", acks=False)
    await visit("ben")

    slow = asyncio.create_task(ada.request("chat:private", {"to": "silent", "text": "hi"}))
    await silent.receive("chat:private")
    answer = await ada.request("chat:private", {"to": "ben", "text": "hi"})
    await ada.request("chat:say", {"room": "general", "text": "hello"})

    assert answer["delivered"] == 1
    assert not slow.done()
    assert await slow == {"delivered": 0, "online": True}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"to": "ben"},
        {"text": "hi"},
        {"to": 1, "text": "hi"},
        {"to": "", "text": "hi"},
        {"to": "x" * 201, "text": "hi"},
    ],
)
async def test_a_private_message_that_does_not_fit_is_refused(visit, data):
    ada = await visit("ada")

    with pytest.raises(Refusal) as refusal:
        await ada.request("chat:private", data)

    assert refusal.value.code == "validation"


# --- who comes without a name


async def test_a_program_without_a_name_may_try_the_protocol(visit):
    nobody = await visit()

    await nobody.request("system:join", {"room": "lab"})
    answer = await nobody.request("system:publish", {"room": "lab", "data": 1})

    assert answer["delivered"] == 1


@pytest.mark.parametrize(
    ("topic", "data"),
    [
        ("chat:rooms", None),
        ("chat:create", {"room": "x"}),
        ("chat:say", {"room": "general", "text": "x"}),
        ("chat:private", {"to": "ada", "text": "x"}),
    ],
)
async def test_who_has_no_name_may_not_chat(visit, topic, data):
    nobody = await visit()
    await nobody.request("system:join", {"room": "general"})

    with pytest.raises(Refusal) as refusal:
        await nobody.request(topic, data)

    assert refusal.value.code == "unauthorized"


# --- how it is put together


async def test_the_settings_authenticator_is_kept():
    """Where the settings say who may come in, a name alone opens no door."""
    auth = AuthSettings(kind="static", tokens={"t0p": ConnMeta(user_id=UserId("ada"))})
    async with chat_server(settings=Settings(auth=auth)) as server, visitors(server) as visit:
        with pytest.raises(InvalidStatus) as refusal:
            await visit("ada")

    assert refusal.value.response.status_code == 401


async def test_overrides_win():
    async with (
        chat_server(max_connections_per_user=1) as server,
        visitors(server) as visit,
    ):
        first = await visit("ada")
        await visit("ada")

        assert await first.closed() == 4501
