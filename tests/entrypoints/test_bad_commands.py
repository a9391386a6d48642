"""protocol.md, "Reserved topics": what a client may get wrong in a command."""

from __future__ import annotations

import pytest

from eyewall import RoomOptions, RoomPolicy
from tests.entrypoints.house import commanded
from tests.entrypoints.wire import peer

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture
async def server():
    async with commanded() as server:
        yield server


NO_ROOM = [
    None,
    5,
    "r",
    [],
    {},
    {"room": None},
    {"room": 5},
    {"room": ""},
    {"room": ["r"]},
    {"room": {}},
    {"room": True},
    {"Room": "r"},
]

WITH_ROOM = ["join", "leave", "publish", "members", "typing"]


@pytest.mark.parametrize("command", WITH_ROOM)
@pytest.mark.parametrize("data", NO_ROOM, ids=str)
async def test_a_command_without_a_good_room_is_refused_as_validation(server, command, data):
    async with peer(server, query="?name=ada") as client:
        nack = await client.refused(f"system:{command}", data)
        assert await client.before_fence() == []

    assert nack["code"] == "validation"
    assert nack["fields"]


WRONG_ARGUMENTS = {
    "publish an event that is a number": ("publish", {"event": 5}),
    "publish an event that is a list": ("publish", {"event": ["a"]}),
    "members with a limit of 0": ("members", {"limit": 0}),
    "members with a negative limit": ("members", {"limit": -1}),
    "members with a limit in words": ("members", {"limit": "ten"}),
    "members with a fraction as limit": ("members", {"limit": 1.5}),
    "members with a limit of true": ("members", {"limit": True}),
    "members with a foreign cursor": ("members", {"cursor": "somewhere"}),
    "members with a cursor that is a number": ("members", {"cursor": 5}),
    "typing is missing": ("typing", {}),
    "typing is a number": ("typing", {"typing": 1}),
    "typing is null": ("typing", {"typing": None}),
    "typing for no time": ("typing", {"typing": True, "ttl": 0}),
    "typing for a negative time": ("typing", {"typing": True, "ttl": -1}),
    "typing for some time": ("typing", {"typing": True, "ttl": "5"}),
    "typing for a true time": ("typing", {"typing": True, "ttl": True}),
}


@pytest.mark.parametrize("case", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
async def test_a_command_with_a_wrong_argument_is_refused_as_validation(server, case):
    command, data = case
    async with peer(server, query="?name=ada") as client:
        await client.join("r")
        nack = await client.refused(f"system:{command}", {"room": "r", **data})
        assert await client.before_fence() == []

    assert nack["code"] == "validation"
    assert nack["fields"]


@pytest.mark.parametrize(
    "data",
    [None, {}, {"users": None}, {"users": "ada"}, {"users": [5]}, {"users": {}}, {"room": 5}],
    ids=str,
)
async def test_presence_of_nobody_in_particular_is_refused(server, data):
    async with peer(server, query="?name=ada") as client:
        assert (await client.refused("system:presence", data))["code"] == "validation"


@pytest.mark.parametrize("data", [None, {}, {"token": None}, {"token": 5}, "token"], ids=str)
async def test_refresh_without_a_token_is_refused(server, data):
    async with peer(server, query="?name=ada") as client:
        assert (await client.refused("system:refresh", data))["code"] == "validation"


@pytest.mark.parametrize("command", ["publish", "members", "typing"])
async def test_a_command_about_a_room_of_others_is_refused(server, command):
    async with peer(server, query="?name=ada") as client:
        data = {"room": "r", "data": 1, "typing": True}

        assert (await client.refused(f"system:{command}", data))["code"] == "not_a_member"


async def test_a_refused_command_without_ack_is_an_error(server):
    await server.hub.create_room("closed", RoomOptions(policy=RoomPolicy.PRIVATE))
    async with peer(server, query="?name=ada") as client:
        await client.send("system:join", {"room": "closed"})
        error = await client.receive()
        assert await client.before_fence() == []

    assert error["topic"] == "system:join"
    assert error["event"] == "error"
    assert error["data"]["code"] == "join_forbidden"
