"""One connection of the Python client: how it begins, and which beginnings fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time

import pytest

from eyewall import ConnMeta, Forbidden, Server, Unauthorized, Unavailable
from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.client.link import MAX_OWN_FRAMES, Address, Ended, Link, dial
from eyewall.client.outbox import Outbox, Outgoing
from tests.certificate import tls_contexts
from tests.entrypoints import wire
from tests.entrypoints.client_support import scripted
from tests.entrypoints.wire import UNIT, WITHIN, eventually, peer, running, soon
from tests.faults.proxy import TcpProxy
from tests.ports import free_port

SHORT = 0.3 * UNIT


def address(url: str, **changes) -> Address:
    fields = {
        "url": url,
        "headers": {},
        "ssl": None,
        "timeout": 5 * UNIT,
        "heartbeat": 20.0,
        "max_message_size": 1 << 20,
    }
    return Address(**{**fields, **changes})


async def refused(url: str, token: str | None = None, **changes):
    with pytest.raises(Ended) as raised:
        await soon(dial(address(url, **changes), token))
    return raised.value.ending


@contextlib.asynccontextmanager
async def linked(**changes):
    """A link that is read, what it read, the task that reads, and the server's end."""
    async with scripted() as script:
        link = await dial(address(script.url, **changes), None)
        came: list[str] = []
        reading = asyncio.ensure_future(link.run(came.append))
        line = await script.line()
        try:
            yield link, came, reading, line
        finally:
            reading.cancel()
            await asyncio.wait([reading])


# --- the beginning


async def test_it_is_welcomed_by_a_real_server():
    async with running() as server:
        link = await dial(address(server.url), None)
        reading = asyncio.ensure_future(link.run(print))
        assert link.welcome["conn_id"] in server.hub.connection_ids()
        assert link.session == link.welcome["session"]
        await soon(link.close())

        assert not (await soon(reading)).comes_back


async def test_a_transport_that_was_closed_twice_ends_the_link_like_any_other(monkeypatch):
    """Old releases of asyncio raise where such a TLS transport is closed once more."""
    monkeypatch.setattr(wire, "over_tls", True)
    async with running() as server:
        link = await dial(address(server.url, ssl=tls_contexts()[1]), None)
        reading = asyncio.ensure_future(link.run(print))
        link._socket.transport.close()
        link._socket.transport.close()

        assert (await soon(reading)).comes_back


async def test_the_token_travels_as_a_bearer_and_headers_as_they_are():
    async with scripted() as script:
        with contextlib.suppress(Ended):
            script.refusals.append((503, {}))
            await dial(address(script.url, headers={"X-Shop": "1"}), "s3cret")
    (request,) = script.requests

    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.headers["X-Shop"] == "1"


async def test_a_wrong_token_is_401():
    server = Server(authenticator=StaticAuthenticator({"right": ConnMeta(user_id="ada")}))
    async with running(server):
        ending = await refused(server.url, "wrong")

    assert isinstance(ending.error, Unauthorized)
    assert not ending.comes_back


async def test_a_foreign_origin_is_403():
    async with running() as server:
        ending = await refused(server.url, headers={"Origin": "http://evil.example"})

    assert isinstance(ending.error, Forbidden)
    assert not ending.comes_back


async def test_a_full_server_is_503_and_says_when_to_come_back():
    async with running(max_connections=1) as server, peer(server):
        ending = await refused(server.url)

    assert isinstance(ending.error, Unavailable)
    assert ending.comes_back
    assert ending.wait is not None
    assert ending.wait >= 1


async def test_where_nobody_listens_there_is_none():
    ending = await refused(f"ws://127.0.0.1:{free_port()}/ws")

    assert isinstance(ending.error, Unavailable)
    assert ending.comes_back


async def test_a_server_that_says_nothing_is_left_in_time():
    async with running() as server:
        with TcpProxy("127.0.0.1", server.port) as proxy:
            proxy.stall()
            ending = await refused(f"ws://127.0.0.1:{proxy.port}/ws", timeout=SHORT)

    assert isinstance(ending.error, Unavailable)


async def test_a_server_that_welcomes_nobody_is_left_in_time():
    async with scripted() as script:
        script.welcome = None
        ending = await refused(script.url, timeout=SHORT)

    assert isinstance(ending.error, Unavailable)


async def test_another_kind_of_server_is_told():
    async with scripted() as script:
        script.subprotocols.clear()
        ending = await refused(script.url)

    assert "eyewall.v1.json" in str(ending.error)


@pytest.mark.parametrize("frame", ["hello", '{"topic": "news"}', '{"topic": "system:welcome"}'])
async def test_another_first_message_is_told(frame):
    async with scripted() as script:
        script.before_welcome = lambda socket: socket.send(frame)
        ending = await refused(script.url)

    assert "no eyewall" in str(ending.error)


@pytest.mark.parametrize(
    ("code", "kind", "back"),
    [(1013, Unavailable, True), (4401, Unauthorized, True), (1008, Forbidden, False)],
)
async def test_a_close_before_the_welcome(code, kind, back):
    async with scripted() as script:
        script.before_welcome = lambda socket: socket.close(code, "because")
        ending = await refused(script.url)

    assert type(ending.error) is kind
    assert str(code) in str(ending.error)
    assert ending.comes_back is back


# --- reading and writing


async def test_what_is_its_own_goes_first_and_the_outbox_when_it_may():
    outbox = Outbox()
    outbox.put(Outgoing(b'"waits"'))
    async with linked() as (link, _, _, line):
        link.post(b'"own"')
        assert await line.receive() == "own"
        await link.flush()
        assert len(outbox) == 1
        link.serve(outbox)

        assert await line.receive() == "waits"
        outbox.put(Outgoing(b'"later"'))
        assert await line.receive() == "later"


async def test_its_own_are_bounded():
    async with linked() as (link, _, _, _):
        # Nothing is written before this task waits.
        taken = sum(link.post(b"1") for _ in range(MAX_OWN_FRAMES + 5))

    assert taken == MAX_OWN_FRAMES


async def test_a_frame_of_bytes_is_no_message():
    async with linked() as (_, came, _, line):
        await line.socket.send(b"\x00")
        await line.send("news", 1)
        await line.close(4503)
        await soon(line.socket.wait_closed())

        assert came[0] == ""
        assert json.loads(came[1])["data"] == 1


# --- the end


async def test_a_close_is_read_with_its_code():
    async with linked() as (link, _, reading, line):
        link.reconnect_in = 1.5
        await line.close(1012, "server_shutdown")
        ending = await soon(reading)

    assert str(ending.error) == "closed with 1012 server_shutdown"
    assert (ending.comes_back, ending.wait) == (True, 1.5)


async def test_a_cut_is_1006():
    async with linked() as (_, _, reading, line):
        line.cut()
        ending = await soon(reading)

    assert "1006" in str(ending.error)
    assert ending.comes_back


async def test_a_message_that_is_too_large_ends_it_for_good():
    """It would come again with every replay."""
    async with linked(max_message_size=1000) as (_, _, reading, line):
        await line.send("news", "x" * 2000)
        ending = await soon(reading)

    assert "1009" in str(ending.error)
    assert not ending.comes_back


async def test_a_line_that_went_dead_is_noticed_by_its_pings():
    async with scripted() as script:
        with TcpProxy("127.0.0.1", script.port) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            link = await dial(address(url, heartbeat=0.1 * UNIT), None)
            reading = asyncio.ensure_future(link.run(print))
            proxy.stall()

            assert (await soon(reading)).comes_back


async def test_a_link_that_stood_still_reads_before_it_is_given_up():
    """The pongs have come, each time, when the time for them is over."""
    async with linked(heartbeat=0.1 * UNIT) as (_, came, reading, line):
        for _ in range(6):
            time.sleep(0.25 * UNIT)  # on purpose: nothing else runs
            await asyncio.sleep(0)
        assert not reading.done()
        await line.send("news", 1)
        await eventually(lambda: came)

        assert not reading.done()


async def test_a_link_that_has_ended_takes_nothing_more():
    """Else a close would wait for frames that nothing writes."""
    async with linked() as (link, _, reading, line):
        line.cut()
        await soon(reading)

        assert not link.post(b"{}")
        await soon(link.flush())


async def test_what_waits_to_be_written_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr("eyewall.client.link.CLOSE_TIMEOUT", 10 * WITHIN)
    async with scripted() as script:
        with TcpProxy("127.0.0.1", script.port) as proxy:
            link = await dial(address(f"ws://127.0.0.1:{proxy.port}/ws"), None)
            reading = asyncio.ensure_future(link.run(print))
            proxy.stall()
            outbox = Outbox(size=100, max_bytes=1 << 30)
            for _ in range(100):
                outbox.put(Outgoing(json.dumps(secrets.token_hex(250_000)).encode()))
            link.serve(outbox)
            await eventually(lambda: len(outbox) < 100)
            proxy.cut()

            assert (await soon(reading)).comes_back
            assert len(outbox) > 0
            await soon(link.flush())


def test_a_welcome_without_a_session_has_none():
    assert Link(None, {"session": 5}, 20.0).session is None  # type: ignore[arg-type]
