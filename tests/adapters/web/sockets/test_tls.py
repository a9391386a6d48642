"""What is special about a TLS socket that was taken over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl

import pytest
import websockets
from tornado.tcpserver import TCPServer

from eyewall.adapters.web.sockets.link import CLOSE_SENT, CLOSED
from eyewall.adapters.web.sockets.poller import READ, WRITE, LoopSource
from eyewall.adapters.web.sockets.tcp import detach_socket
from eyewall.adapters.web.sockets.tls import TlsLink, TlsSocket
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.outbox import Offer, QueueConfig
from tests.adapters.web.support import (
    PATIENCE,
    Client,
    masked,
    raw,
    request,
    served,
    turns,
    until,
)
from tests.adapters.web.tls_support import GOODBYE, tls_peer
from tests.certificate import tls_contexts

CLOSED_BY_SERVER = b"\x88\x11\x03\xf4server_shutdown"
ECHOED_GOODBYE = b"\x88\x02\x03\xe8"


@pytest.fixture(params=["epoll", "loop"])
def source(request):
    return None if request.param == "epoll" else LoopSource()


@contextlib.contextmanager
def quiet(caplog):
    """Nothing that is logged meanwhile is an error or has a stack trace."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        yield
    loud = [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]
    assert loud == []


async def test_a_tls_connection_is_taken_over_too(source):
    async with served(tls=True, source=source) as here:
        client, link = await here.pair()
        client.send("hello")

        assert type(link) is TlsLink
        assert await client.text() == "hello"


# --- what OpenSSL keeps


async def test_what_came_in_the_requests_own_record_is_read():
    async with served(tls=True) as here:
        client = await Client.dial(here)
        client.write(request() + masked("1") + masked("2")[:3])
        await until(lambda: here.transport_events.links)
        client.write(masked("2")[3:])
        await client.answered()

        assert await client.texts(2) == ["1", "2"]


async def test_a_stream_that_left_something_in_openssl_is_taken_over_with_it():
    """An application's own server may read less at a time than a record."""
    server = Keeping(ssl_options=tls_contexts()[0], read_chunk_size=64)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server.add_socket(listening)
    _, writer = await asyncio.open_connection(
        *listening.getsockname(), ssl=tls_contexts()[1], server_hostname="localhost"
    )
    writer.write(b"head\r\n\r\n" + b"x" * 10_000)
    await until(lambda: server.streams)
    (stream,) = server.streams
    await stream.read_until(b"\r\n\r\n")

    sock, ahead = await detach_socket(stream, 1.0)

    assert ahead == b"x" * 10_000
    sock.close()
    server.stop()
    writer.transport.abort()


class Keeping(TCPServer):
    """Keeps its streams."""

    def __init__(self, **options):
        super().__init__(**options)
        self.streams = []

    async def handle_stream(self, stream, address):
        self.streams.append(stream)


async def test_records_of_every_size_are_read_whole(source):
    """Also when one has many messages, and one message takes many records."""
    sizes = [1, 125, 16_383, 16_384, 16_385, 65_536, 300_000]
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        here.transport_events.on_message = lambda *_: None
        await peer.write(b"".join(masked("tiny") for _ in range(1000)))
        for size in sizes:
            await peer.write(masked("x" * size))
        await until(lambda: len(here.transport_events.messages) == 1000 + len(sizes))

        assert [len(payload) for _, payload, _ in here.transport_events.messages] == [
            4
        ] * 1000 + sizes


async def test_a_large_frame_is_whole_after_a_stall(source):
    """OpenSSL wants refused bytes again exactly as they were."""
    async with served(tls=True, source=source) as here:
        client, link = await here.pair(small=True)
        client.pause()
        parts = [os.urandom(3_000_000 + n) for n in range(3)]
        for part in parts:
            link.send(raw(part, binary=True))
            await until(lambda: link.pending is None)
        assert link._backlog is not None
        client.resume()

        for part in parts:
            assert (await client.frame())[1] == part


async def test_a_record_that_was_refused_is_not_given_to_the_policy():
    """The frames in it went out as far as OpenSSL is concerned."""
    async with served(tls=True, queue=QueueConfig(size=2, drop_policy="drop_oldest")) as here:
        client, link = await here.pair(small=True)
        client.pause()
        sent = 0
        while link._backlog is None or link.send(raw(b"")) is not Offer.DROPPED_OLDEST:
            for _ in range(50):  # many in one write
                link.send(raw(f"{sent:06}".ljust(1000)))
                sent += 1
            await asyncio.sleep(0)
        link.send(raw("last"))
        client.resume()
        got = []
        while (text := await client.text()) != "last":
            got += [int(text)] if text else []

        assert got == sorted(got)
        assert got[0] == 0
        assert len(got) < sent


# --- the end


async def test_the_end_is_said_in_tls_before_the_socket_closes(source):
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        await until(lambda: here.transport_events.links)
        here.transport_events.links[0].close(Reason.SERVER_SHUTDOWN)

        assert await peer.answered() == CLOSED_BY_SERVER  # fails at an end unsaid
        await peer.say_end()
        assert await asyncio.get_running_loop().sock_recv(peer.socket, 1) == b""
        peer.socket.close()
        await until(lambda: not len(here.sockets))


@pytest.mark.parametrize("end", ["say_end", "end_unsaid", "reset"])
async def test_a_peer_that_ends_without_a_close_frame_is_lost_quietly(end, source, caplog):
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        await until(lambda: here.transport_events.links)
        with quiet(caplog):
            done = getattr(peer, end)()
            if done is not None:
                await done
            await until(lambda: here.transport_events.ends)

        assert len(here.sockets) == 0
        assert here.transport_events.reasons() == [Reason.CONNECTION_LOST]
        assert here.log.entries == []


async def test_a_peer_that_has_said_its_end_in_tls_still_reads_what_was_sent(source):
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        await peer.write(masked("hello") + GOODBYE)
        await peer.say_end()

        assert await peer.rest() == b"\x81\x05hello" + ECHOED_GOODBYE
        peer.socket.close()
        await until(lambda: not len(here.sockets))
        assert here.transport_events.reasons() == [Reason.CLIENT_CLOSED]


async def test_the_peers_goodbye_in_tls_may_have_come_before_ours(source):
    """Then the session is over for OpenSSL, and what is left is to see the socket's end."""
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        await until(lambda: here.transport_events.links)
        (link,) = here.transport_events.links
        here.io.poller.unwatch(link._fd)  # so that our side is first
        await peer.say_end()
        link.close(Reason.SERVER_SHUTDOWN)
        assert await peer.read() == CLOSED_BY_SERVER
        assert link.state == CLOSE_SENT
        here.io.poller.watch(link._fd, link, READ)

        assert await peer.rest() == b""
        await until(lambda: not len(here.sockets))


async def test_a_record_that_does_not_decrypt_is_an_error_of_reading(source, caplog):
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        other = await here.connect()
        with quiet(caplog):
            await peer.spoil()
            await until(lambda: here.transport_events.ends)

        ((_, reason, error),) = here.transport_events.ends
        assert reason is Reason.READ_ERROR
        assert isinstance(error, ssl.SSLError)
        other.send("hello")
        assert await other.text() == "hello"


async def test_a_peer_that_vanishes_while_the_connection_is_being_opened_is_lost_once(source):
    gate = asyncio.Event()

    async def slow(_link):
        await gate.wait()
        return True

    async with served(tls=True, source=source) as here:
        here.transport_events.on_open = slow
        client, link = await here.pair()
        client.abort()
        if source is not None:  # it tells no hang-up of what is not read
            gate.set()
        await until(lambda: here.transport_events.ends)
        gate.set()
        await until(lambda: not len(here.sockets))

        assert here.transport_events.reasons() == [Reason.CONNECTION_LOST]
        assert link.state == CLOSED


async def test_a_real_client_closes_cleanly():
    async with served(tls=True) as here:
        async with websockets.connect(here.url, ssl=here.tls) as ws:
            await ws.send("hello")
            assert await ws.recv() == "hello"
            here.transport_events.links[0].close(Reason.REPLACED)
            with pytest.raises(websockets.ConnectionClosed):
                await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4501, "replaced")
        await until(lambda: not len(here.sockets))


# --- handshakes that are none


async def test_http_on_the_tls_port_is_cut_off_quietly(caplog):
    async with served(tls=True) as here:
        with quiet(caplog):
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write(request())
            answer = b""
            with contextlib.suppress(ConnectionResetError):  # there may be more to read
                answer = await asyncio.wait_for(reader.read(), PATIENCE)
            assert not answer.startswith(b"HTTP")
            writer.close()
        assert here.transport_events.places == []


@pytest.mark.parametrize("end", ["reset", "end_unsaid"])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_peer_that_leaves_during_the_tls_handshake_leaves_nothing(sent, end, caplog):
    async with served(tls=True) as here:
        gc.collect()  # what other tests have left must not go meanwhile
        before = len(os.listdir("/proc/self/fd"))
        with quiet(caplog):
            async with tls_peer(here, upgraded=False) as peer:
                await asyncio.get_running_loop().sock_sendall(peer.socket, sent)
                # one for the client's side, one for the server's
                await until(lambda: len(os.listdir("/proc/self/fd")) == before + 2)
                getattr(peer, end)()
                await until(lambda: len(os.listdir("/proc/self/fd")) < before + 2)
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_a_client_that_does_not_trust_the_certificate_is_no_error(caplog):
    async with served(tls=True) as here:
        with quiet(caplog):
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection("127.0.0.1", here.port, ssl=True)
            client = await here.connect()
            client.send("hello")
            assert await client.text() == "hello"


# --- what OpenSSL needs for something else


class Scripted:
    """Stands for an ``SSLSocket``: raises what it is told to, once, then does its work."""

    def __init__(self, tls, **raises):
        self._tls = tls
        self._raises = raises

    def __getattr__(self, name):
        return self._fail if name in self._raises else getattr(self._tls, name)

    def _fail(self, *_):
        _, error = self._raises.popitem()
        raise error("scripted")


@contextlib.asynccontextmanager
async def scripted(**raises):
    """Return a node, a client and a link whose OpenSSL is about to say these things."""
    async with served(tls=True) as here:
        client, link = await here.pair()
        carrier = link._socket
        carrier._tls = Scripted(carrier._tls, **raises)
        yield here, client, link


async def test_a_write_that_needs_to_read_first_waits_for_that_alone():
    async with scripted(write=ssl.SSLWantReadError) as (here, client, link):
        link.send(raw("held up"))
        await until(lambda: link._backlog is not None)
        assert (link._socket.needs, link._interest) == (READ, READ)
        await asyncio.sleep(0.01)
        assert link._backlog is not None
        client.send("go on")

        assert await client.texts(2) == ["held up", "go on"]
        assert (link._socket.needs, link._interest) == (0, READ)
        assert here.transport_events.ends == []


async def test_a_read_that_needs_to_write_first_waits_for_that_alone():
    async with scripted(recv=ssl.SSLWantWriteError) as (_, client, link):
        needs = []
        watch = link._watch
        link_type = type(link)
        link_type._watch = lambda self, interest: (needs.append(interest), watch(interest))
        try:
            client.send("hello")
            assert await client.text() == "hello"
        finally:
            del link_type._watch

        assert needs[:2] == [WRITE, READ]
        assert link._socket.needs == 0


async def test_a_goodbye_in_tls_that_did_not_fit_is_said_when_it_does():
    async with served(tls=True) as here, tls_peer(here) as peer:
        await until(lambda: here.transport_events.links)
        (link,) = here.transport_events.links
        carrier = link._socket
        carrier._tls = Scripted(carrier._tls, unwrap=ssl.SSLWantWriteError)
        link.close(Reason.SERVER_SHUTDOWN)

        assert await peer.answered() == CLOSED_BY_SERVER


def test_bytes_that_are_partly_taken_are_counted():
    class Full:
        def __init__(self, error):
            self.error = error
            self.records = []

        def write(self, data):
            if len(self.records) == 2:
                raise self.error("full")
            self.records.append(bytes(data))
            return len(data)

    data = os.urandom(100_000)
    for error, needs in [(ssl.SSLWantWriteError, 0), (ssl.SSLWantReadError, READ)]:
        tls = Full(error)
        carrier = TlsSocket(tls)
        assert carrier.send(data) == 32 * 1024
        assert b"".join(tls.records) == data[: 32 * 1024]
        with pytest.raises(BlockingIOError):
            carrier.send(data)
        assert carrier.needs == needs


async def test_nothing_is_written_in_the_clear_once_the_session_is_over():
    async with served(tls=True) as here, tls_peer(here):
        await until(lambda: here.transport_events.links)
        carrier = here.transport_events.links[0]._socket
        carrier.shutdown(socket.SHUT_RD)
        with pytest.raises(ValueError, match="unwrapped"):
            carrier.send(b"secret")


async def test_who_goes_on_sending_after_our_end_was_said_is_not_reset(source):
    """What they send is thrown away until they end too, lest the close frame be lost."""
    async with served(tls=True, source=source) as here, tls_peer(here) as peer:
        await peer.write(b"\x81\x02hi")
        assert await peer.answered() == b"\x88\x10\x03\xeaprotocol_error"
        for _ in range(20):
            await peer.write(b"z" * 10_000)
        await turns(20)
        assert len(here.sockets) == 1
        assert await asyncio.get_running_loop().sock_recv(peer.socket, 1) == b""
        peer.socket.close()
        await until(lambda: not len(here.sockets))


# --- all of them


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_fan_out_reaches_all(size, source):
    async with served(tls=True, source=source) as here:
        clients = [await here.connect() for _ in range(10)]
        room = here.sockets.outbound.new_group()
        for link in here.transport_events.links:
            room.add(link)
        for n in range(20):
            room.broadcast(raw(f"{n:06}".ljust(size)))
        for client in clients:
            assert [int(text[:6]) for text in await client.texts(20)] == list(range(20))
