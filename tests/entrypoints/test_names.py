"""Names that people write: of users, rooms, topics, events, tags and headers, unchanged."""

from __future__ import annotations

import pytest

from eyewall import Server
from tests.entrypoints.house import commanded
from tests.entrypoints.wire import peer

NAMES = [
    "می\u200cخواهم",  # Persian, with a joiner that keeps two letters apart
    "क\u094d\u200dष",  # Hindi, with one that draws them together
    "山田\u3000太郎",
    "Jean\u00a0Paul",
    "👩\u200d💻",
    "\U0001fae9",  # an emoji of 2024
    "cafe\u0301",  # not composed, and left so
]
WRONG = ["a\nb", "a\x85b", "a\u2028b", "a\u2029b", "a\u202eb", "a\u2066b", "\x7f"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_taken_as_it_is(name):
    async with commanded() as server, peer(server, query=f"?name={name}") as client:

        @server.on(name)
        async def echo(ctx, msg):
            return {"user": ctx.user_id, "event": msg.event, "headers": dict(msg.headers)}

        answer = await client.request(name, event=name, headers={name: name})
        assert (answer["user"], answer["event"], answer["headers"]) == (name, name, {name: name})

        assert (await client.request("system:join", {"room": name}))["room"] == name
        await client.send("system:publish", {"room": name, "event": name, "data": name})
        said = await client.expect(f"room:{name}", name)
        assert said["data"] == name
        [member] = (await client.request("system:members", {"room": name}))["members"]
        assert member["user_id"] == name
        server.hub.set_meta(client.conn_id, tags=[name])
        assert server.hub.find_by_tag(name) == [client.conn_id]
        assert await server.hub.rooms() == [name]


@pytest.mark.parametrize("name", WRONG)
async def test_what_breaks_a_line_or_turns_text_around_names_no_room_and_no_user(name):
    async with commanded() as server, peer(server, query="?name=ada") as client:
        refused = await client.refused("system:join", {"room": name})
        assert refused["code"] == "validation"
        assert list(refused["fields"]) == ["room"]
        with pytest.raises(ValueError, match="user_id"):
            server.hub.set_meta(client.conn_id, user_id=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_node_may_have_it(name):
    assert Server(node_id=name).hub.node_id == name
