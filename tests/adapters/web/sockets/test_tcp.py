"""What is special about a plain socket that was taken over."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import struct

import pytest
from tornado.iostream import IOStream

from eyewall.adapters.web.sockets.link import CLOSED
from eyewall.adapters.web.sockets.poller import LoopSource
from eyewall.adapters.web.sockets.tcp import TcpLink, detach_socket
from eyewall.domain.connection import DisconnectReason as Reason
from tests.adapters.web.support import CLOSE, Client, masked, raw, request, served, turns, until


@pytest.fixture(params=["epoll", "loop"])
def source(request):
    return None if request.param == "epoll" else LoopSource()


async def test_a_plain_connection_is_taken_over_with_its_options_set(source):
    async with served(source=source) as here:
        client, link = await here.pair()
        assert type(link) is TcpLink
        client.send("hello")
        assert await client.text() == "hello"
        sock = link._socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 64 * 1024


async def test_a_connection_needs_no_second_descriptor():
    """The limit is real here, and just one descriptor is left when the client dials."""
    async with served() as here:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()
        client.setblocking(False)
        spare = os.dup(client.fileno())  # the lowest free number, for the server's side
        os.close(spare)
        used = [os.dup(client.fileno())]
        os.close(used.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest_in_use() + 2, before[1]))
        try:
            while True:
                try:
                    used.append(os.dup(client.fileno()))
                except OSError:
                    break
            os.close(used.pop())
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", here.port))
            await loop.sock_sendall(client, request() + masked("hello"))
            await until(lambda: here.transport_events.messages)
        finally:
            for fd in used:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        data = b""
        while not data.endswith(b"\x81\x05hello"):
            data += await loop.sock_recv(client, 1000)
        client.close()


def highest_in_use() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd"))


async def streamed():
    """Return a stream with much still to write, and its peer, which does not read."""
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    stream.write(b"x" * 4_000_000)
    assert stream.writing()
    theirs.setblocking(False)
    return stream, theirs


async def test_a_socket_is_taken_when_what_came_before_is_written():
    stream, peer = await streamed()
    taking = asyncio.create_task(detach_socket(stream, 5.0))
    got = 0
    while got < 4_000_000:
        assert not taking.done()
        got += len(await asyncio.get_running_loop().sock_recv(peer, 1 << 20))
        await asyncio.sleep(0)
    sock, ahead = await taking

    assert (sock.fileno() >= 0, ahead, stream.closed()) == (True, b"", True)
    sock.sendall(b"after")
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"after"
    sock.close()
    peer.close()


async def test_a_peer_that_does_not_take_what_came_before_is_cut_off():
    stream, peer = await streamed()
    with pytest.raises(ConnectionAbortedError):
        await detach_socket(stream, 0.05)
    assert stream.closed()
    peer.close()


async def test_a_peer_that_is_gone_before_its_socket_is_taken_is_gone():
    stream, peer = await streamed()
    taking = asyncio.create_task(detach_socket(stream, 5.0))
    await turns()
    peer.close()
    with pytest.raises(OSError, match="closed"):
        await taking
    with pytest.raises(ConnectionResetError):
        await detach_socket(stream, 5.0)


async def test_a_take_over_that_is_called_off_leaves_nothing_open():
    stream, peer = await streamed()
    taking = asyncio.create_task(detach_socket(stream, 5.0))
    await turns()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert stream.closed()
    peer.close()


@pytest.mark.parametrize("cut", range(33))
async def test_what_comes_behind_the_request_is_read_first_wherever_it_is_cut(cut):
    data = masked("early one") + masked("early two")
    async with served() as here:
        client = await Client.dial(here)
        client.write(request() + data[:cut])
        await until(lambda: here.transport_events.links)
        client.write(data[cut:])
        await client.answered()

        assert await client.texts(2) == ["early one", "early two"]


async def test_what_comes_while_the_connection_is_being_opened_waits(source):
    gate = asyncio.Event()

    async def slow(link):
        link.send(raw("welcome"))
        await gate.wait()
        return True

    async with served(source=source) as here:
        here.transport_events.on_open = slow
        client = await Client.dial(here)
        client.write(request() + masked("1"))
        await client.answered()
        client.send("2")
        assert await client.text() == "welcome"
        await turns(20)
        assert here.transport_events.messages == []
        gate.set()

        assert await client.texts(2) == ["1", "2"]


async def test_a_connection_that_is_refused_while_opening_reads_why(source):
    async def refuse(link):
        link.send(raw("sorry"))
        link.close(Reason.POLICY_VIOLATION)
        return False

    async with served(source=source) as here:
        here.transport_events.on_open = refuse
        client = await Client.dial(here)
        client.write(request() + masked("ignored") * 100)
        await client.answered()

        assert await client.text() == "sorry"
        assert await client.closed() == (1008, "policy_violation")
        client.leave()
        await until(lambda: not len(here.sockets))
        assert here.transport_events.messages == []
        assert here.transport_events.ends == []


async def test_a_peer_that_resets_while_the_connection_is_being_opened_is_lost_once():
    gate = asyncio.Event()

    async def slow(_link):
        await gate.wait()
        return True

    async with served() as here:
        here.transport_events.on_open = slow
        client, link = await here.pair()
        client.abort()
        await until(lambda: here.transport_events.ends)
        gate.set()
        await turns()

        assert here.transport_events.reasons() == [Reason.CONNECTION_LOST]
        assert link.state == CLOSED
        assert here.transport_events.messages == []


async def test_a_peer_that_closes_its_side_only_is_done(source):
    async with served(source=source) as here:
        client, link = await here.pair()
        client.writer.write_eof()

        assert await client.end() == b""
        assert here.transport_events.reasons(link) == [Reason.CONNECTION_LOST]


async def test_a_peer_that_says_goodbye_and_closes_its_side_reads_what_was_sent(source):
    async with served(source=source) as here:
        client, _ = await here.pair()
        client.write(masked("hello") + masked(b"\x03\xe8", 0x88))
        client.writer.write_eof()

        assert await client.text() == "hello"
        assert await client.frame() == (CLOSE, b"\x03\xe8")
        assert await client.end() == b""
        await until(lambda: not len(here.sockets))
        assert here.transport_events.reasons() == [Reason.CLIENT_CLOSED]


async def test_a_write_to_a_peer_that_is_gone_is_a_write_error():
    async with served() as here:
        client, link = await here.pair()
        here.io.poller.unwatch(link._fd)  # as if the write were noticed first
        client.abort()
        while link.state != CLOSED:
            link.send(raw("x"))
            await asyncio.sleep(0.001)
        await turns()

        assert here.transport_events.reasons() == [Reason.WRITE_ERROR]
        (end,) = here.transport_events.ends
        assert isinstance(end[2], ConnectionError)


async def test_an_event_that_was_meant_for_another_connection_does_no_harm(source):
    """Numbers of descriptors are reused: an event may reach the next owner of one."""
    async with served(source=source) as here:
        client, link = await here.pair()
        link.on_readable()
        link.on_writable()
        link.on_rescheduled()
        client.send("hello")

        assert await client.text() == "hello"
        assert here.transport_events.reasons(link) == []


async def test_everything_works_with_the_loops_own_readers():
    async with served(source=LoopSource()) as here:
        one, first = await here.pair()
        two, second = await here.pair()
        room = here.sockets.outbound.new_group()
        room.add(first)
        room.add(second)
        one.pause()
        sent = 0
        while first._backlog is None:
            await here.sockets.outbound.ready()
            room.broadcast(raw(f"{sent:06}".ljust(10_000)))
            sent += 1
            await asyncio.sleep(0)
        one.resume()
        got = await asyncio.gather(one.texts(sent), two.texts(sent))
        assert [[int(text[:6]) for text in texts] for texts in got] == [list(range(sent))] * 2
        await until(lambda: first._backlog is None)


async def test_a_half_open_connection_is_noticed_by_the_next_write():
    """The peer is gone without a word; the network says so when something is sent."""
    async with served() as here:
        client, link = await here.pair()
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        link.send(raw("anybody there?"))
        await until(lambda: here.transport_events.ends)

        assert len(here.transport_events.ends) == 1
        assert here.transport_events.reasons()[0] in (Reason.WRITE_ERROR, Reason.CONNECTION_LOST)


async def test_an_error_of_reading_that_is_no_lost_connection_says_so(monkeypatch):
    async with served() as here:
        _, link = await here.pair()
        real = link._socket

        class Failing:
            def recv(self, size):
                raise OSError(errno.EIO, "i/o error")

            def close(self):
                real.close()

        link._socket = Failing()
        link.on_readable()
        await turns()

        assert here.transport_events.reasons() == [Reason.READ_ERROR]
