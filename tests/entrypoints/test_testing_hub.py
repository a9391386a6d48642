"""A server in a test: what it is made of, who gets in, what time does to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from eyewall import (
    AckOptions,
    AckTimeout,
    ConnectionClosed,
    ConnMeta,
    DisconnectReason,
    Forbidden,
    HandlerNotFound,
    JoinForbidden,
    Message,
    Misuse,
    Overloaded,
    RoomOptions,
    RoomPolicy,
    SendOptions,
    Server,
    Target,
    Unauthorized,
)
from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.server.server import registry_of
from eyewall.testing import TestHub


def greeting(**options):
    """A server whose one handler greets."""
    server = Server(client_commands=True, **options)

    @server.on("hello")
    async def hello(ctx, msg):
        return {"user": ctx.user_id, "node": ctx.hub.node_id}

    return server


# --- the server that it is made of


async def test_it_begins_and_ends_as_the_server_would():
    ran = []
    server = Server()
    server.on_startup(lambda: ran.append("startup"))
    server.on_shutdown(lambda: ran.append("shutdown"))
    server.background(lambda: ran.append("background"))
    server.hub.on_disconnect(lambda conn, reason: ran.append(reason.value))

    async with TestHub(server) as th:
        await th.settle()
        alice = await th.connect(user="alice")

    assert ran == ["startup", "background", "server_shutdown", "shutdown"]
    assert alice.closed.reason is DisconnectReason.SERVER_SHUTDOWN


async def test_the_server_is_left_as_it_was():
    """One test after the other takes the same server, and so does the program."""
    server = greeting()
    for _ in range(2):
        async with TestHub(server) as th:
            alice = await th.connect(user="alice")
            assert server.hub.users() == ["alice"]
            server.handle("only:here", lambda ctx, msg: None)
            await alice.request("only:here")
            await alice.join("lab")

    assert server.hub.users() == []
    async with TestHub(server) as th:
        assert await th.hub.rooms() == []
        with pytest.raises(HandlerNotFound):
            await (await th.connect()).request("only:here")
    async with server:
        assert await server.hub.rooms() == []


async def test_handlers_reach_it_by_the_server():
    server, worked = Server(), []

    @server.on("tell")
    async def tell(ctx, msg):
        server.background(lambda: worked.append(msg.data))
        await server.hub.send_to_user("bob", Message("told", data=msg.data))

    async with TestHub(server) as th:
        alice, bob = await th.connect(user="alice"), await th.connect(user="bob")
        await alice.send("tell", "psst")

        assert (await bob.receive()).data == "psst"
        assert worked == ["psst"]


async def test_a_stop_button_ends_what_the_test_runs_and_nothing_of_the_server():
    server, begun = Server(), []

    async def poll(name):
        begun.append(name)
        await asyncio.Event().wait()

    poller = server.background(poll, "own")

    @server.on("stop")
    async def stop(ctx, msg):
        poller.cancel()

    for _ in range(2):
        async with TestHub(server) as th:
            alice = await th.connect(user="alice")
            assert (begun.pop(), poller.done) == ("own", False)
            await alice.request("stop")
            assert poller.done is True
        assert poller.done is False
    async with server:
        await asyncio.sleep(0)
        assert begun == ["own"]


async def test_what_a_startup_hook_raises_comes_out_and_nothing_is_left():
    server = Server()

    @server.on_startup
    async def fail():
        raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        async with TestHub(server):
            pass
    assert server.hub.node_id == registry_of(server).runtime.node.config.node_id


async def test_keywords_of_the_server_can_be_others_here():
    server = greeting(max_connections=5)
    async with TestHub(server, max_connections=1, node_id="mine") as th:
        assert (await (await th.connect()).request("hello"))["node"] == "mine"
        with pytest.raises(Overloaded):
            await th.connect()
    with pytest.raises(TypeError, match="colour"):
        async with TestHub(server, colour="red"):
            pass


async def test_it_is_used_while_it_is_open():
    th = TestHub(greeting())
    with pytest.raises(RuntimeError, match="async with"):
        await th.connect()
    async with th:
        with pytest.raises(RuntimeError, match="open"):
            await th.__aenter__()


async def test_an_end_that_waits_for_time_gets_it():
    """A disconnect hook that would wait for an ack for ever does not hold up the test."""
    server = Server()

    @server.hub.on_disconnect
    async def late(conn, reason):
        await asyncio.get_running_loop().create_future()

    async with TestHub(server) as th:
        await th.connect()

    assert th.logs.fields("unfinished_at_shutdown")["steps"] == ["hooks"]


# --- who gets in


async def test_a_client_is_who_the_test_says():
    async with TestHub(greeting(authenticator=StaticAuthenticator({}))) as th:
        alice = await th.connect(user="alice", roles=["admin"], tags=["eu"], ip="10.0.0.1")
        bob = await th.connect(meta=ConnMeta(user_id="bob", device_id="phone"))

        assert (alice.conn.meta.roles, alice.conn.meta.ip) == ({"admin"}, "10.0.0.1")
        assert th.hub.find_by_tag("eu") == [alice.id]
        assert (bob.user_id, bob.conn.meta.device_id) == ("bob", "phone")
        with pytest.raises(ValueError, match="not both"):
            await th.connect(user="alice", token="t")
        with pytest.raises(ValueError, match="not both"):
            await th.connect(user="alice", meta=ConnMeta())


async def test_without_a_user_the_authenticator_is_asked():
    asked = []

    async def authenticate(handshake):
        asked.append((handshake.path, handshake.query.get("q"), handshake.cookies, handshake.ip))
        token = handshake.headers.get("Authorization", "").removeprefix("Bearer ")
        return ConnMeta(user_id=token) if token else None

    server = greeting(authenticator=authenticate, trusted_proxies=["127.0.0.1"])
    async with TestHub(server) as th:
        ada = await th.connect(
            token="ada",
            path="/live",
            query={"q": "1"},
            cookies={"c": "2"},
            headers={"X-Forwarded-For": "10.1.1.1", "User-Agent": "tests"},
        )
        with pytest.raises(Unauthorized):
            await th.connect()

    assert ada.user_id == "ada"
    assert ada.conn.meta.user_agent == "tests"
    assert asked[0] == ("/live", "1", {"c": "2"}, "10.1.1.1")


async def test_who_is_refused_gives_its_place_back():
    server = greeting(max_connections=1, authenticator=lambda handshake: None)
    async with TestHub(server) as th:
        for _ in range(3):
            with pytest.raises(Unauthorized):
                await th.connect()
        await th.connect(user="alice")


async def test_a_page_of_another_origin_is_refused():
    async with TestHub(greeting(check_origin=["https://good.example"])) as th:
        await th.connect(headers={"Origin": "https://good.example"})
        with pytest.raises(Forbidden):
            await th.connect(headers={"Origin": "https://evil.example"})


async def test_whom_a_hook_refuses_is_told_so():
    server = Server()

    @server.hub.on_connect
    async def check(conn):
        await conn.send("sorry")
        raise Forbidden("not today")

    async with TestHub(server) as th:
        with pytest.raises(ConnectionClosed, match="policy_violation"):
            await th.connect(user="alice")
        (alice,) = th.clients

        assert (alice.closed.reason, alice.closed.code) == ("policy_violation", 1008)
        assert (await alice.receive()).topic == "sorry"


async def test_a_hook_that_waits_for_time_is_told_of(monkeypatch):
    server = Server()

    @server.hub.on_connect
    async def wait(conn):
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr("eyewall.testing.hub.CONNECT_TIMEOUT", 0.01)
    async with TestHub(server) as th:
        with pytest.raises(AssertionError, match="on_connect hook waits"):
            await th.connect()


# --- time


async def test_a_token_runs_out():
    at = datetime(2030, 1, 1, tzinfo=UTC)
    async with TestHub(greeting(), at=at) as th:
        assert th.now() == at
        alice = await th.connect(user="alice", expires_at=th.now() + timedelta(seconds=60))
        th.advance(59)
        await alice.request("hello")
        th.advance(timedelta(seconds=1))
        await th.settle()

        assert (alice.closed.reason, alice.closed.code) == ("token_expired", 4401)
        assert th.now() == at + timedelta(seconds=60)


async def test_time_passes_before_the_next_await_of_the_hub():
    async with TestHub(Server(presence_grace=5.0)) as th:
        alice = await th.connect(user="alice")
        await alice.cut()
        th.advance(4.9)
        assert (await th.hub.presence("alice")).online
        th.advance(0.1)
        assert not (await th.hub.presence("alice")).online


async def test_what_is_called_before_time_passes_begins_before_it():
    async with TestHub(Server()) as th:
        await th.connect(user="alice")
        call = asyncio.create_task(
            th.hub.emit_with_ack(
                Target.user("alice"), Message("hi"), AckOptions(timeout=5, require_all=True)
            )
        )
        th.advance(4)
        await th.settle()
        assert not call.done()
        await th.advance(1)
        with pytest.raises(AckTimeout):
            await call


async def test_a_chain_of_retries_runs_in_one_stretch_of_time():
    """Each timer is set by what the one before has set off."""
    server, results = Server(), []

    @server.on("order")
    async def order(ctx, msg):
        results.append(await ctx.hub.send_to_user_with_retry("bob", Message("offer")))

    async with TestHub(server) as th:
        alice = await th.connect(user="alice")
        bob = await th.connect(user="bob")
        bob._link.full = True
        await alice.send("order")
        assert not results
        await th.advance(60)

    assert results[0].total_retries == 3


@pytest.mark.parametrize(("away", "gets_in"), [(99, True), (101, False)])
async def test_a_used_invite_outlives_a_cut_for_the_session_s_time(away, gets_in):
    async with TestHub(greeting(session_ttl=100.0)) as th:
        await th.hub.create_room("board", RoomOptions(policy=RoomPolicy.INVITE_ONLY))
        await th.hub.invite("board", "alice")
        first = await th.connect(user="alice", session=True)
        await first.join("board")
        await first.cut()
        th.advance(away)
        again = await th.connect(user="alice", session=True)

        assert first.session != again.session
        if gets_in:
            await again.join("board")
        else:
            with pytest.raises(JoinForbidden):
                await again.join("board")


# --- what is kept


async def test_messages_for_who_is_away_wait_for_their_time():
    """In memory, whatever store the server was given: that one is not touched."""
    store = MemoryOffline()
    options = SendOptions(offline="store", ttl=60.0)
    async with TestHub(Server(offline=store)) as th:
        for wait, topics in ((59, ["hi"]), (61, [])):
            report = await th.hub.send_to_user("alice", Message("hi"), options)
            assert report.stored == 1
            th.advance(wait)
            alice = await th.connect(user="alice")
            messages = await alice.received()
            assert [message.topic for message in messages] == topics
            for message in messages:
                await alice.ack(message)
            await alice.close()
    async with TestHub(Server()) as th:
        with pytest.raises(Misuse):
            await th.hub.send_to_user("alice", Message("hi"), options)


async def test_a_room_keeps_its_history_for_its_time():
    async with TestHub(greeting()) as th:
        await th.hub.create_room("lab", RoomOptions(history_size=10, history_ttl=60.0))
        alice = await th.connect(user="alice")
        await alice.join("lab")
        await alice.publish("lab", "old")
        th.advance(40)
        await alice.publish("lab", "new")
        assert [m.stream.offset for m in await alice.received()] == [1, 2]
        th.advance(40)

        assert [m.data for m in (await th.hub.history("lab")).messages] == ["new"]


# --- a cluster


async def test_two_of_them_are_a_cluster():
    server = greeting()
    async with TestHub(server) as one, TestHub(server, beside=one) as two:
        alice, bob = await one.connect(user="alice"), await two.connect(user="bob")
        await alice.join("lab")
        await bob.join("lab")
        await bob.publish("lab", "hi")

        assert (await alice.receive()).data == "hi"
        assert {one.hub.node_id, two.hub.node_id} == {"test-1", "test-2"}
        assert len(await one.hub.members("lab")) == 2
        two.advance(60)
        assert (await one.hub.presence("bob")).online


async def test_two_apart_know_nothing_of_each_other():
    server = greeting()
    async with TestHub(server) as one, TestHub(server) as two:
        alice = await one.connect(user="alice")

        assert not (await two.hub.presence("alice")).online
        two.advance(60)
        assert one.now() < two.now()
        assert server.hub.users() == []
        assert (await alice.request("hello"))["node"] == "test-1"
    assert one.logs is not two.logs
