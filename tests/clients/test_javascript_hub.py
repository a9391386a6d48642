"""The JavaScript client against a real hub, in Node and in Chromium, with a network that fails."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from eyewall import (
    ConnMeta,
    DisconnectReason,
    Message,
    Nacked,
    QueueConfig,
    RoomId,
    RoomOptions,
    SendOptions,
    Server,
    UserId,
)
from eyewall.adapters.offline.memory import MemoryOffline
from tests.clients.javascript import PAGES, WITHIN, Chromium, JsError, in_node
from tests.entrypoints.chat_support import UNIT
from tests.entrypoints.wire import eventually
from tests.faults.proxy import TcpProxy
from tests.libraries.servers import need
from tests.libraries.test_close import NODE_MODULES
from tests.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser belongs to one loop

ROOT = Path(__file__).parents[2]
R = RoomId("r")


class House:
    """A server behind a proxy, and what its handlers were asked."""

    def __init__(self, server: Server, proxy: TcpProxy, port: int) -> None:
        self.server = server
        self.port = port
        self.hub = server.hub
        self.proxy = proxy
        self.url = f"ws://127.0.0.1:{proxy.port}/ws"
        self.done: list[Any] = []
        self.go_on = asyncio.Event()
        self.begun = asyncio.Event()

    async def do(self, _ctx: Any, msg: Any) -> dict[str, Any]:
        self.done.append(msg.data)
        return {"did": msg.data}

    async def take_long(self, ctx: Any, msg: Any) -> dict[str, Any]:
        self.begun.set()
        await self.go_on.wait()
        return await self.do(ctx, msg)


@contextlib.asynccontextmanager
async def house(before: House | None = None, **options: Any) -> AsyncIterator[House]:
    """Open a house, or one in the place of another that has closed."""
    server = Server(client_commands=True, **options)
    with contextlib.ExitStack() as stack:
        if before is None:
            port = free_port()
            found = House(server, stack.enter_context(TcpProxy("127.0.0.1", port)), port)
        else:
            found = House(server, before.proxy, before.port)
        server.handle("do", found.do)
        server.handle("long", found.take_long)
        await server.start(port=found.port, pages=PAGES)
        try:
            yield found
        finally:
            found.go_on.set()
            await server.shutdown(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Chromium]:
    async with contextlib.AsyncExitStack() as stack:
        yield Chromium(stack)


@pytest.fixture(params=["node", "chromium"])
def where(request, chromium) -> Callable[..., Any]:
    return in_node if request.param == "node" else chromium


async def with_history(house: House, size: int = 1000) -> None:
    await house.hub.create_room(R, RoomOptions(history_size=size))


async def say(house: House, *numbers: int) -> None:
    for number in numbers:
        await house.hub.broadcast_room(R, "room:r", "message", number)


# --- all is well


async def test_it_does_all_that_clients_do(where):
    async with house() as h, where(h.url) as ada, where(h.url) as ben:
        await with_history(h)
        joined = await ada.call("join", "r")
        await ben.call("join", "r")
        assert (joined["members"], joined["offset"]) == (1, 0)
        sent = await ada.call("publish", "r", {"text": "høi ☕"}, {"event": "said"})
        assert (sent["delivered"], sent["offset"]) == (2, 1)
        for client in (ada, ben):
            await client.until(lambda c=client: c.heard("room:r") == [{"text": "høi ☕"}])
        members = await ada.call("members", "r")
        assert [m["connections"] for m in members["members"]] == [2]
        assert (await ada.call("presence", ["nobody"]))["users"]["nobody"]["online"] is False
        history = await ben.call("history", "r", {"limit": 10})
        assert [m["event"] for m in history["messages"]] == ["said"]
        assert (await ben.call("request", "do", 1))["did"] == 1
        await ada.call("leave", "r")
        assert (await ben.call("publish", "r", 2))["delivered"] == 1
        with pytest.raises(JsError) as refused:
            await ada.call("publish", "r", 3)
        assert refused.value.code == "not_a_member"
        assert await ada.call("state") == "open"


async def test_who_joins_to_hear_it_gets_what_was_said_before(where):
    """Another client, as of a page that was reloaded, and the same one after it has left."""
    async with house() as h, where(h.url) as early:
        await with_history(h)
        await say(h, *range(300))
        hole = Message("room:r", data="not for early")
        await h.hub.emit_to_room_except("r", h.hub.connection_ids(), hole)
        await say(h, 300)
        everything = [*range(300), 300]
        first = await early.call("join", "r", {"since": "start"})
        await early.until(lambda: early.heard("room:r") == everything)
        assert (first["recovered"], first["offset"]) == (True, 302)
        await early.call("leave", "r")
        await early.call("join", "r", {"since": "start"})
        await early.until(lambda: early.heard("room:r") == [*everything, *everything])
        async with where(h.url) as late:
            answer = await late.call("join", "r", {"since": 2})
            await say(h, 301)
            await late.until(lambda: late.heard("room:r") == ["not for early", 300, 301])
            assert answer["recovered"] is True
            with pytest.raises(JsError) as refused:
                await late.call("join", "r", {"since": "end"})
            assert refused.value.code == "validation"
        assert early.of("lost") == []


async def test_a_replay_that_is_cut_goes_on_from_where_it_was(where):
    async with house() as h, where(h.url) as client:
        await with_history(h)
        await h.hub.update_room("r", history_size=1000)
        pad = "x" * 20_000
        for number in range(200):
            await h.hub.broadcast_room(R, "room:r", "message", {"n": number, "pad": pad})

        def numbers() -> list[int]:
            return [data["n"] for data in client.heard("room:r")]

        joining = asyncio.ensure_future(client.call("join", "r", {"since": "start", "timeout": 30}))
        await client.until(lambda: len(numbers()) > 5)
        h.proxy.cut()

        assert (await joining)["recovered"] is True
        await client.until(lambda: len(numbers()) >= 200)
        assert numbers() == list(range(200))
        assert client.of("lost") == []


async def test_the_hub_asks_and_gets_what_the_handler_returns(where):
    async with house() as h, where(h.url) as client:
        (conn,) = h.hub.connection_ids()

        assert await h.hub.request(conn, Message("ask", data={"n": 1})) == {"got": {"n": 1}}
        with pytest.raises(Nacked, match="I won't"):
            await h.hub.request(conn, Message("refuse"))
        await client.until(lambda: bool(client.of("error")))


async def test_stored_events_of_any_name_are_handled_once_and_not_kept(where):
    """Also those that answers have."""
    tokens = lasting({"t": 3600})
    offline = MemoryOffline()
    ada = UserId("ada")
    events = ["error", "ack", "gap", "message"]
    async with house(authenticator=tokens, offline=offline) as h:
        for event in events:
            message = Message("orders", event, {"code": 7})
            report = await h.hub.send_to_user(ada, message, SendOptions(offline="store"))
            assert report.stored == 1
        async with where(h.url, tokens=["t"]) as client:
            await client.until(lambda: len(client.heard("orders")) == len(events))
            assert [m["event"] for m in client.of("message")] == events
            assert client.of("error") == []
            await eventually(lambda: len(offline) == 0)


async def test_a_room_that_was_left_while_away_is_not_joined_again(where):
    async with house() as h, where(h.url) as client:
        await client.call("join", "r")
        await client.call("join", "other")
        h.proxy.refuse()
        h.proxy.cut()
        await client.until(lambda: "waiting" in client.states)
        with pytest.raises(JsError) as late:
            await client.call("leave", "r", {"timeout": 0.05})
        h.proxy.resume()
        await client.back()

        (conn,) = h.hub.connections()
        assert (late.value.code, conn.rooms) == ("ack_timeout", {"other"})


async def test_it_ends_when_the_hub_wants_that(where):
    async with house() as h, where(h.url) as client:
        (conn,) = h.hub.connections()
        await conn.close(DisconnectReason.DISCONNECTED)

        await client.until(lambda: client.states[-1] == "closed")
        assert client.of("state")[-1]["code"] == 4503


async def test_the_example_of_the_docs_runs(tmp_path):
    example = re.findall(
        r"```js\n(.*?)```", (ROOT / "docs" / "javascript.md").read_text(), re.DOTALL
    )[0]
    async with house() as h:
        source = (ROOT / "clients" / "js" / "eyewall.js").as_uri()
        example = example.replace("/eyewall.js", source).replace('"/ws"', f'"{h.url}"')
        script = tmp_path / "example.mjs"
        script.write_text(example + "\nclient.close();\n")
        process = await asyncio.create_subprocess_exec(
            shutil.which("node") or "node",
            "--experimental-websocket",
            "--no-warnings",
            script,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), WITHIN)

    assert (process.returncode, out.decode()) == (0, "hello\n")


# --- the network fails


async def test_a_request_under_way_survives_a_cut_and_is_handled_once(where):
    async with house() as h, where(h.url) as client:
        asked = asyncio.ensure_future(client.call("request", "long", 7, {"timeout": 60}))
        await asyncio.wait_for(h.begun.wait(), WITHIN)
        h.proxy.cut()
        await client.back()
        h.go_on.set()

        assert (await asked)["did"] == 7
        assert h.done == [7]


async def test_a_request_whose_answer_was_lost_is_answered_again_from_memory(where):
    async with house() as h, where(h.url) as client:
        answered = asyncio.Event()

        @h.server.on("once")
        async def once(ctx, msg):
            h.proxy.stall()
            h.done.append(msg.data)
            answered.set()
            return {"n": len(h.done)}

        asked = asyncio.ensure_future(client.call("request", "once", 7, {"timeout": 60}))
        await asyncio.wait_for(answered.wait(), WITHIN)
        h.proxy.cut()
        h.proxy.resume()

        assert (await asked)["n"] == 1
        assert h.done == [7]


async def test_a_request_that_never_arrived_is_sent_again(where):
    async with house() as h, where(h.url) as client:
        h.proxy.stall()
        asked = asyncio.ensure_future(client.call("request", "do", 7, {"timeout": 60}))
        assert await client.call("state") == "open"
        h.proxy.cut()
        h.proxy.resume()

        assert (await asked)["did"] == 7
        assert h.done == [7]


async def test_what_was_sent_meanwhile_arrives_in_order(where):
    async with house() as h, where(h.url) as client:
        h.proxy.refuse()
        h.proxy.cut()
        await client.until(lambda: "waiting" in client.states)
        asked = []
        for number in range(0, 40, 2):
            await client.call("send", "do", number)
            request = client.call("request", "do", number + 1, {"timeout": 60})
            asked.append(asyncio.ensure_future(request))
            await client.call("state")  # by then it has been asked; it is answered later
        h.proxy.resume()
        await asyncio.gather(*asked)
        await client.call("request", "do", "last")

        assert h.done == [*range(40), "last"]


async def test_more_than_the_outbox_holds_is_refused(where):
    async with house() as h, where(h.url, outbox=3) as client:
        h.proxy.refuse()
        h.proxy.cut()
        await client.until(lambda: "waiting" in client.states)
        for number in range(3):
            await client.call("send", "do", number)

        with pytest.raises(JsError) as full:
            await client.call("send", "do", 3)
        assert full.value.code == "overloaded"
        h.proxy.resume()
        await client.back()
        await client.call("request", "do", "last")
        assert h.done == [0, 1, 2, "last"]


async def test_cut_again_and_again_it_handles_each_message_once_and_in_order(where):
    async with house() as h, where(h.url) as client:
        await with_history(h)
        await client.call("join", "r")
        for turn in range(4):
            first = turn * 50
            await say(h, *range(first, first + 25))
            h.proxy.cut()
            await say(h, *range(first + 25, first + 50))
            await client.back(turn + 1)
        await client.until(lambda: len(client.heard("room:r")) >= 200)
        await client.call("request", "do", "fence")

        assert client.heard("room:r") == list(range(200))
        assert client.of("lost") == []
        assert await client.call("state") == "open"


async def test_what_a_full_queue_dropped_is_fetched(where):
    """The hub tells of the gap when the client reads again."""
    async with house(queue=QueueConfig(size=8)) as h, where(h.url) as client:
        await with_history(h)
        await client.call("join", "r")
        h.proxy.stall()
        pad = "x" * 32_000
        dropped = 0
        for number in range(400):
            await h.hub.broadcast_room(R, "room:r", "message", {"n": number, "pad": pad})
            dropped = h.hub.stats().drops
        assert dropped
        h.proxy.resume()

        def numbers() -> list[int]:
            return [data["n"] for data in client.heard("room:r")]

        await client.until(lambda: len(numbers()) >= 400)
        assert numbers() == list(range(400))
        assert client.of("lost") == []
        assert client.states.count("open") == 1


async def test_what_the_room_has_not_kept_is_told(where):
    async with house() as h, where(h.url) as client:
        await with_history(h, size=5)
        await client.call("join", "r")
        await client.call("join", "plain")
        h.proxy.refuse()
        h.proxy.cut()
        await client.until(lambda: "waiting" in client.states)
        await say(h, *range(10))
        h.proxy.resume()
        await client.back()
        await say(h, 10)
        await client.until(lambda: bool(client.heard("room:r")))

        assert client.heard("room:r") == [10]
        await client.until(lambda: len(client.of("lost")) > 1)
        lost = {facts["room"]: facts.get("offset") for facts in client.of("lost")}
        assert lost == {"r": 10, "plain": None}
        assert (await client.call("publish", "plain", 1))["delivered"] == 1


async def test_it_comes_back_to_the_next_server_when_the_first_has_drained(where):
    """What was asked meanwhile goes to the new one, and the rooms are joined there."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(house())
        client = await stack.enter_async_context(where(first.url))
        await client.call("join", "r")
        await first.server.shutdown(1)
        await client.until(lambda: "waiting" in client.states)
        draining = next(facts for facts in client.of("state") if "draining" in facts)
        waiting = next(facts for facts in client.of("state") if facts["state"] == "waiting")
        assert (waiting["code"], waiting["asked"]) == (1012, True)
        assert waiting["delay"] == draining["draining"]
        asked = asyncio.ensure_future(client.call("request", "do", 7, {"timeout": 60}))

        second = await stack.enter_async_context(house(first))
        await client.call("connect")

        assert (await asked)["did"] == 7
        assert second.done == [7]
        await client.until(lambda: bool(client.of("lost")))
        assert [facts["room"] for facts in client.of("lost")] == ["r"]
        assert (await client.call("publish", "r", 1))["delivered"] == 1


# --- tokens


def lasting(seconds: dict[str, float]) -> Callable[[Any], ConnMeta | None]:
    """Tokens that last so long, all of ada's."""

    def authenticate(handshake: Any) -> ConnMeta | None:
        left = seconds.get(handshake.query.get("token", ""))
        if left is None:
            return None
        expires_at = datetime.now(UTC) + timedelta(seconds=left)
        return ConnMeta(user_id=UserId("ada"), expires_at=expires_at)

    return authenticate


async def test_a_token_is_renewed_in_the_connection_that_is_there(where):
    tokens = [{"token": "t1", "expires_in": 2 * UNIT}, {"token": "t2", "expires_in": 3600}]
    rules = lasting({"t1": 2 * UNIT, "t2": 3600})
    async with house(authenticator=rules) as h, where(h.url, tokens=tokens) as client:
        (conn,) = h.hub.connections()
        assert conn.user_id == "ada"
        soon = datetime.now(UTC) + timedelta(seconds=3000)
        await eventually(lambda: conn.meta.expires_at >= soon)

        assert await client.call("connId") == conn.id
        assert client.states.count("open") == 1


async def test_a_token_that_has_run_out_is_replaced_by_a_new_one(where):
    rules = lasting({"t1": 1 * UNIT, "t2": 3600})
    tokens = ["t1", "t2"]
    async with house(authenticator=rules) as h, where(h.url, tokens=tokens) as client:
        await client.back()

        assert [facts["code"] for facts in client.of("state") if "code" in facts] == [4401]
        assert await client.call("userId") == "ada"


async def test_one_that_is_not_let_in_asks_for_a_token_again(where):
    rules = lasting({"good": 3600})
    async with house(authenticator=rules) as h, where(h.url, tokens=["bad", "good"]) as client:
        assert await client.call("userId") == "ada"
        assert len(h.hub.connection_ids()) == 1


# --- not let in


async def test_who_is_not_let_in_any_more_stays_away_until_there_is_another_token(where):
    """A page sees no status of a handshake, but it sees a close with 4504."""
    seconds = {"t1": 3600.0}
    rules = lasting(seconds)
    async with (
        house(authenticator=rules, refuse_with="close") as h,
        where(h.url, tokens=["t1"]) as client,
    ):
        await client.call("join", "r")
        h.proxy.refuse()
        h.proxy.cut()
        await client.until(lambda: client.states[-1] == "waiting")
        assert client.of("state")[-1]["why"] in {"connection_closed", "unavailable"}
        del seconds["t1"]
        h.proxy.resume()
        await client.until(lambda: client.states[-1] == "closed")
        facts = client.of("state")[-1]
        assert (facts["code"], facts["reason"]) == (4504, "auth_failed")
        assert facts["why"] == "unauthorized"
        with pytest.raises(JsError) as refused:
            await client.call("ready")
        assert refused.value.code == "unauthorized"
        with pytest.raises(JsError) as failed:
            await client.call("request", "do", 1)
        assert failed.value.code == "connection_closed"

        seconds["t2"] = 3600.0
        await client.call("setToken", "t2")
        await client.call("ready")

        assert (await client.call("publish", "r", 1))["delivered"] == 1
        assert client.of("state")[-1]["why"] is None


async def test_who_is_not_let_in_at_all_is_told_at_once(where):
    async with house(authenticator=lasting({}), refuse_with="close") as h:
        with pytest.raises(JsError) as refused:
            async with where(h.url, tokens=["bad", "worse"]):
                pass

    assert refused.value.code == "unauthorized"


async def test_ws_for_node_tells_of_http_401():
    need(NODE_MODULES.exists(), "npm")
    async with house(authenticator=lasting({})) as h:
        with pytest.raises(JsError, match="not let in: HTTP 401") as refused:
            async with in_node(h.url, tokens=["bad"], ws=str(NODE_MODULES)):
                pass

    assert refused.value.code == "unauthorized"


async def test_ws_for_node_comes_back_when_the_hub_has_time():
    need(NODE_MODULES.exists(), "npm")
    async with house(max_connections=1) as h, in_node(h.url, ws=str(NODE_MODULES)) as client:
        h.proxy.cut()
        await client.back()

        assert (await client.call("request", "do", 1))["did"] == 1
