"""From the request to the open connection, and every way not to get there."""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
import struct

import pytest
from tornado.httpserver import HTTPServer

from eyewall.adapters.web.http import handshake
from eyewall.adapters.web.http.server import MAX_HEADER_SIZE
from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.errors import (
    Forbidden,
    Overloaded,
    RateLimited,
    RoomFull,
    ShuttingDown,
    Unauthorized,
    Unavailable,
)
from tests.adapters.web.support import (
    UNIT,
    Client,
    Clock,
    PlainCodec,
    masked,
    raw,
    request,
    served,
    turns,
    until,
)

CODECS = [PlainCodec("json"), PlainCodec("msgpack", binary=True)]


async def answer(here, data: bytes) -> Client:
    client = await Client.dial(here)
    client.write(data)
    await client.answered()
    return client


# --- the answer


async def test_the_answer_follows_rfc_6455():
    async with served() as here:
        client = await answer(here, request())

        assert client.status == 101
        assert client.fields["upgrade"] == "websocket"
        assert client.fields["connection"] == "Upgrade"
        assert client.fields["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert "sec-websocket-protocol" not in client.fields
        assert "content-type" not in client.fields


@pytest.mark.parametrize("protocol", [None, "eyewall.v1.json", "eyewall.v1.msgpack"])
async def test_compression_goes_with_every_codec(protocol):
    offers = "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits"
    async with served(codecs=CODECS, compression=CompressionConfig()) as here:
        data = request(Sec_WebSocket_Protocol=protocol, Sec_WebSocket_Extensions=offers)
        client = await answer(here, data)
        await until(lambda: here.transport_events.links)

        assert client.fields["sec-websocket-extensions"] == (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        )
        assert client.fields.get("sec-websocket-protocol") == protocol
        (link,) = here.transport_events.links
        assert link.wire.name == f"{link.codec.name}+deflate"


@pytest.mark.parametrize(
    "offers", [None, "", "permessage-deflate; server_max_window_bits=9", 'permessage-deflate; "']
)
async def test_without_an_offer_that_fits_there_is_no_compression(offers):
    async with served(compression=CompressionConfig()) as here:
        client = await answer(here, request(Sec_WebSocket_Extensions=offers))
        await until(lambda: here.transport_events.links)

        assert "sec-websocket-extensions" not in client.fields
        assert here.transport_events.links[0].wire.name == "json"


@pytest.mark.parametrize(
    ("offered", "chosen", "codec"),
    [
        (None, None, "json"),
        ("eyewall.v1.json", "eyewall.v1.json", "json"),
        ("eyewall.v1.msgpack", "eyewall.v1.msgpack", "msgpack"),
        ("other, eyewall.v1.msgpack, eyewall.v1.json", "eyewall.v1.msgpack", "msgpack"),
        ("eyewall.v1.json,eyewall.v1.msgpack", "eyewall.v1.json", "json"),
        ("other, another", None, "json"),
    ],
)
async def test_the_first_subprotocol_that_is_known_in_the_clients_order(offered, chosen, codec):
    async with served(codecs=CODECS) as here:
        client = await here.connect(Sec_WebSocket_Protocol=offered)

        assert client.fields.get("sec-websocket-protocol") == chosen
        assert here.transport_events.links[0].codec.name == codec
        assert here.transport_events.sessions == [chosen is not None]


def reluctant(monkeypatch, write):
    """Have ``write(link_write, data)`` stand for the first write of every link."""
    create_link = handshake.create_link

    def made(*arguments):
        link = create_link(*arguments)
        link.write = functools.partial(write, link.write)
        return link

    monkeypatch.setattr(handshake, "create_link", made)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("taken", [0, 1, 100])
async def test_an_answer_that_the_kernel_takes_in_parts_arrives_whole(monkeypatch, taken, tls):
    def take(write, data):
        if not taken:
            raise BlockingIOError
        return write(data[:taken])

    reluctant(monkeypatch, take)
    async with served(tls=tls) as here:
        client = await answer(here, request())
        await until(lambda: here.transport_events.links)
        client.send("hello")

        assert client.status == 101
        assert await client.text() == "hello"


async def test_a_client_that_is_gone_when_it_is_answered_was_never_here(monkeypatch):
    def fail(_write, _data):
        raise ConnectionResetError

    reluctant(monkeypatch, fail)
    async with served() as here:
        client = await Client.dial(here)
        client.write(request())

        assert await client.end() == b""
        await until(lambda: here.transport_events.places[0].released)
        assert here.transport_events.links == here.transport_events.ends == []
        assert len(here.sockets) == 0


async def test_the_access_log_of_an_application_that_is_there_already_has_the_upgrade():
    async with served() as here:
        await here.connect()

        assert here.requests == [101]


async def test_a_handshake_leaves_no_work_for_the_collector():
    """Hundreds of objects of Tornado's for each connect, if they held each other."""

    def handlers():
        return [one for one in gc.get_objects() if type(one) is handshake.HandshakeHandler]

    async with served() as here:
        gc.collect()
        # An exception that another test keeps holds the frames, and so the handler, that it
        # passed through.
        others = handlers()
        gc.disable()
        try:
            client = await here.connect()
            client.send("hello")
            assert await client.text() == "hello"

            await until(lambda: all(one in others for one in handlers()))
        finally:
            gc.enable()


async def test_the_handshake_says_what_the_client_said():
    async with served(trusted_proxies=["127.0.0.1"]) as here:
        client = await answer(
            here,
            request(
                "/ws?token=a&token=b&q=%C3%A9",
                X_Forwarded_For="198.51.100.1",
                Cookie="session=abc; theme=dark",
                Authorization="Bearer x",
                Sec_WebSocket_Protocol="a, b",
            ),
        )
        assert client.status == 101
        (said,) = here.transport_events.handshakes

        assert said.path == "/ws"
        assert (said.query["token"], said.query.all("token")) == ("a", ["a", "b"])
        assert said.query["q"] == "é"
        assert said.headers["authorization"] == "Bearer x"
        assert dict(said.cookies) == {"session": "abc", "theme": "dark"}
        assert said.ip == "198.51.100.1"
        assert said.subprotocols == ("a", "b")


async def test_forwarded_addresses_are_not_believed_from_just_anybody():
    async with served() as here:
        await here.connect(X_Forwarded_For="198.51.100.1")
        assert here.transport_events.handshakes[0].ip == "127.0.0.1"


# --- refused


@pytest.mark.parametrize(
    "fields",
    [
        {"Upgrade": None},
        {"Upgrade": "h2c"},
        {"Connection": "keep-alive"},
        {"Sec_WebSocket_Version": None},
        {"Sec_WebSocket_Version": "8"},
    ],
)
async def test_what_is_no_upgrade_is_told_what_is_spoken_here(fields):
    async with served() as here:
        client = await answer(here, request(**fields))

        assert client.status == 426
        assert client.fields["sec-websocket-version"] == "13"
        assert client.fields["upgrade"] == "websocket"
        assert here.transport_events.places == []


@pytest.mark.parametrize("key", [None, "", "short", "!" * 24, "dGhlIHNhbXBsZSBub25jZQ"])
async def test_an_upgrade_without_a_valid_key(key):
    async with served() as here:
        client = await answer(here, request(Sec_WebSocket_Key=key))

        assert client.status == 400
        assert here.transport_events.places == []


@pytest.mark.parametrize(
    ("rule", "origin", "status"),
    [
        (None, "http://localhost", 101),
        (None, "https://evil.com", 403),
        (None, "null", 403),
        (["https://*.example.com"], "https://a.example.com", 101),
        (["https://*.example.com"], "http://localhost", 101),
        (["https://*.example.com"], "http://localhost:1", 403),
        (lambda origin, handshake: "good" in origin, "https://good.com", 101),
        (lambda origin, handshake: "good" in origin, "https://bad.com", 403),
        (lambda origin, handshake: 1 / 0, "https://bad.com", 500),
    ],
)
async def test_the_origin_is_checked(rule, origin, status):
    async with served(check_origin=rule) as here:
        client = await answer(here, request(Origin=origin))

        assert client.status == status
        assert (here.transport_events.handshakes == []) is (status != 101)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unauthorized("the token is s3cret"), 401),
        (Forbidden("s3cret was sent away"), 401),
        (RoomFull("try later"), 503),
        (Overloaded(retry_after=2.5), 503),
        (RateLimited(7), 503),
        (Unavailable("redis at 10.0.0.1"), 503),
        (ValueError("the token is s3cret"), 500),
        (TimeoutError("its own"), 500),
    ],
)
async def test_an_authenticator_that_refuses_or_fails(error, status):
    async def fail(_handshake):
        raise error

    async with served() as here:
        here.transport_events.on_authenticate = fail
        client = await answer(here, request())
        body = await client.reader.readexactly(int(client.fields["content-length"]))

        assert client.status == status
        assert ("retry-after" in client.fields) is (status == 503)
        assert b"s3cret" not in body
        assert b"10.0.0.1" not in body
        assert [place.released for place in here.transport_events.places] == [1]
        faults = [event for level, event, _ in here.log.entries if level == "error"]
        assert faults == (["authenticator_failed"] if status == 500 else [])
        assert here.transport_events.links == []


@pytest.mark.parametrize(
    ("error", "retry_after"), [(ShuttingDown(), "1"), (Overloaded(retry_after=2.5), "3")]
)
async def test_a_node_that_takes_nobody_says_when_to_come_back(error, retry_after):
    def refuse(_ip):
        raise error

    async with served() as here:
        here.transport_events.on_reserve = refuse
        client = await answer(here, request())

        assert client.status == 503
        assert client.fields["retry-after"] == retry_after
        assert here.transport_events.handshakes == []


# --- too slow, gone


async def test_a_request_that_is_not_finished_in_time_is_cut_off():
    async with served(handshake_timeout=0.2) as here:
        for data in (b"", request()[:-2]):
            client = await Client.dial(here)
            client.write(data)
            assert await client.end() == b""


async def test_a_handshake_over_tls_that_is_not_finished_in_time_is_cut_off():
    async with served(tls=True, handshake_timeout=0.2) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()


async def test_a_tls_client_that_leaves_before_it_is_let_in_is_no_fault_of_the_server():
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with served(tls=True) as here:
        # Nothing is awaited here, so that the server finds it all at once.
        with socket.create_connection(("127.0.0.1", here.port)) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client = await here.connect()
        client.send("hello")
        assert await client.text() == "hello"
    assert faults == []


async def test_an_authenticator_that_takes_too_long_is_cut_off():
    stopped = []

    async def hang(_handshake):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    async with served(handshake_timeout=0.2) as here:
        here.transport_events.on_authenticate = hang
        client = await Client.dial(here)
        client.write(request())

        assert await client.end() == b""
        assert stopped == [True]
        assert [place.released for place in here.transport_events.places] == [1]
        assert here.transport_events.links == []


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_client_that_leaves_while_it_is_authenticated_gives_its_place_back(tls):
    gate = asyncio.Event()

    async def slow(_handshake):
        await gate.wait()

    async with served(tls=tls) as here:
        here.transport_events.on_authenticate = slow
        client = await Client.dial(here)
        client.write(request())
        await until(lambda: here.transport_events.handshakes)
        client.abort()
        await turns(20)
        gate.set()
        await until(lambda: here.transport_events.places[0].released or here.transport_events.ends)

        assert here.transport_events.places[0].released + len(here.transport_events.ends) == 1
        assert len(here.sockets) == 0


async def test_the_time_runs_from_the_connect_to_the_101():
    """Whether it is used up before the request or behind it."""
    whole = 0.6 * UNIT
    order = []

    async def hang(_handshake):
        await asyncio.Event().wait()

    async def note(client, name):
        await client.end()
        order.append(name)

    async with served(handshake_timeout=whole) as here:
        here.transport_events.on_authenticate = hang
        slow = await Client.dial(here)
        asyncio.get_running_loop().call_later(whole / 2, slow.write, request())
        first = asyncio.ensure_future(note(slow, "half the time for each"))
        await asyncio.sleep(whole / 4)
        await note(await Client.dial(here), "a quarter later, and silent")
        await first

        assert order == ["half the time for each", "a quarter later, and silent"]
        assert len(here.transport_events.handshakes) == 1
        assert here.transport_events.places[0].released == 1


async def test_in_an_application_of_the_user_s_own_authentication_has_its_time_too():
    async def hang(_handshake):
        await asyncio.Event().wait()

    async with served(handshake_timeout=0.1 * UNIT, own_server=HTTPServer) as here:
        here.transport_events.on_authenticate = hang
        client = await Client.dial(here)
        client.write(request())

        assert await client.end() == b""
        assert here.transport_events.places[0].released == 1


async def test_a_thousand_header_fields_are_answered_with_431():
    fields = b"".join(b"X-%d: 1\r\n" % n for n in range(1000))
    async with served() as here:
        client = await answer(here, request()[:-2] + fields + b"\r\n")

        assert client.status == 431
        assert here.transport_events.places == []
        assert here.transport_events.handshakes == []


async def test_of_handshakes_that_wait_to_be_decided_there_are_only_so_many(monkeypatch):
    monkeypatch.setattr(handshake, "MAX_PENDING_DECISIONS", 1)
    gate = asyncio.Event()

    async def slow(_handshake):
        await gate.wait()

    async with served() as here:
        here.transport_events.on_authenticate = slow
        first = await Client.dial(here)
        first.write(request())
        await until(lambda: here.transport_events.handshakes)
        second = await answer(here, request())

        assert second.status == 503
        assert int(second.fields["retry-after"]) >= 1
        assert [place.released for place in here.transport_events.places] == [0, 1]
        gate.set()
        await first.answered()
        assert first.status == 101
        assert (await answer(here, request())).status == 101


async def test_headers_have_a_bound():
    async with served() as here:
        client = await Client.dial(here)
        client.write(request(X_Long="x" * MAX_HEADER_SIZE))

        assert b"101" not in (await client.end())[:20]
        assert here.transport_events.places == []


async def test_an_application_that_fails_to_open_ends_the_connection():
    async def fail(_link):
        raise RuntimeError("secret")

    async with served() as here:
        here.transport_events.on_open = fail
        client = await answer(here, request())

        assert await client.closed() == (1011, "internal_error")
        assert here.log.entries[-1][1] == "open_failed"


async def test_reading_begins_when_the_application_has_opened():
    order = []

    async def opening(link):
        await turns(20)
        order.append("opened")
        link.send(raw("welcome"))
        return True

    async with served() as here:
        here.transport_events.on_open = opening
        here.transport_events.on_message = lambda *_: order.append("message")
        client = await answer(here, request() + masked("early"))
        assert await client.text() == "welcome"
        await until(lambda: len(order) == 2)

        assert order == ["opened", "message"]
        assert here.transport_events.reasons() == []
        here.transport_events.links[0].close(Reason.NORMAL)


@pytest.mark.parametrize("cut", [None, 9], ids=["whole", "cut"])
@pytest.mark.parametrize("waits", [0, 20])
async def test_a_close_that_came_with_the_handshake_is_seen_by_who_is_refused(waits, cut):
    async def refuse(link):
        link.close(Reason.POLICY_VIOLATION)
        await turns(waits)
        return False

    async with served(clock=Clock(by_hand=True)) as here:
        here.transport_events.on_open = refuse
        early = masked("early") + masked(b"\x03\xe8", 0x88)
        client = await answer(here, request() + early[:cut])
        if cut is not None:
            client.write(early[cut:])

        assert (await client.frame())[1] == b"\x03\xf0policy_violation"
        assert await client.end() == b""
        assert here.transport_events.messages == []


@pytest.mark.parametrize("early", [masked("early"), masked("x" * 500_000)])
async def test_frames_behind_a_handshake_that_is_refused_are_no_requests(early):
    async with served() as here:
        client = await answer(here, request(Origin="http://evil.example") + early)
        assert client.status == 403
        async with asyncio.timeout(5 * UNIT):
            assert await client.reader.read() == b"this origin is not allowed\n"
        reasons = [fields["reason"] for _, event, fields in here.log.entries if "reason" in fields]
        assert reasons == ["origin"]


async def test_a_plain_request_after_a_refusal_is_served_on_the_same_connection():
    async with served() as here:
        client = await answer(here, request(Sec_WebSocket_Key="bad"))
        assert client.status == 400
        await client.reader.readuntil(b"\n")
        client.write(request())
        await client.answered()
        assert client.status == 101
        await until(lambda: here.transport_events.links)
