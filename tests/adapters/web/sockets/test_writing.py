"""What becomes of frames that a socket takes in part, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from eyewall.adapters.web.sockets.batch import MAX_JOINED_BYTES
from eyewall.adapters.web.sockets.link import CLOSE_QUEUED, CLOSED, EARLY_FLUSH_FRAMES
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.outbox import Offer
from tests.adapters.web.support import raw, served, turns, until


async def test_only_what_the_peer_has_the_beginning_of_leaves_the_policys_reach():
    """Of three joined frames the socket took one and a half."""
    async with served() as here:
        _, link = await here.pair()
        frames = [raw("a" * 10), raw("b" * 10), raw("c" * 10)]
        blob = b"".join(frame.for_wire(link.wire) for frame in frames)

        link.on_partial_write(frames, blob, 15)

        assert bytes(link._backlog.partial) == blob[15:24]
        assert len(link._backlog._outbox) == 1


@pytest.mark.parametrize(("sent", "queued"), [(0, 3), (12, 2), (24, 1)])
async def test_between_two_frames_nothing_is_half_written(sent, queued):
    async with served() as here:
        _, link = await here.pair()
        frames = [raw("a" * 10), raw("b" * 10), raw("c" * 10)]
        blob = b"".join(frame.for_wire(link.wire) for frame in frames)

        link.on_partial_write(frames, blob, sent)

        assert not link._backlog.partial
        assert len(link._backlog._outbox) == queued


async def test_bytes_that_must_be_offered_again_stay_as_they_are():
    async with served(tls=True) as here:
        _, link = await here.pair()
        frames = [raw(b"x" * 10_000) for _ in range(4)]
        blob = b"".join(frame.for_wire(link.wire) for frame in frames)

        link.on_partial_write(frames, blob, 0)

        assert len(link._backlog.partial) == 2 * 10_004  # the frames that a record touches
        assert len(link._backlog._outbox) == 2


async def test_a_close_decided_while_only_control_frames_wait_keeps_them():
    """A backlog without messages is still a backlog."""
    async with served() as here:
        client, link = await here.pair()
        link._begin_backlog(memoryview(b""))
        link._backlog.add_control(b"\x8a\x04pong")
        backlog = link._backlog
        assert len(backlog) == 0
        link.close(Reason.NORMAL)
        here.sockets.outbound.flush_now()
        assert link.state == CLOSE_QUEUED
        assert link._backlog is backlog

        assert await client.frame() == (10, b"pong")
        assert await client.closed() == (1000, "normal")


async def test_many_direct_messages_are_written_before_the_turn_ends():
    async with served() as here:
        client, link = await here.pair()
        for n in range(EARLY_FLUSH_FRAMES + 1):
            link.send(raw(str(n)))
        assert len(link.pending) == 1

        assert await client.texts(EARLY_FLUSH_FRAMES + 1) == [
            str(n) for n in range(EARLY_FLUSH_FRAMES + 1)
        ]


async def test_after_the_end_nothing_is_taken():
    async with served() as here:
        client, link = await here.pair()
        client.abort()
        await until(lambda: link.state == CLOSED)

        assert link.send(raw("x")) is Offer.CLOSED
        with pytest.raises(BrokenPipeError):
            link.write(b"abc")
        assert link.queued == 0
        link.queue_close_frame()
        link.on_writable()
        await turns()
        assert len(here.transport_events.ends) == 1


async def test_the_application_is_never_called_from_within_a_send():
    async with served() as here:
        client, link = await here.pair()
        client.abort()
        loop = asyncio.get_running_loop()
        while link.state != CLOSED:
            before = len(here.transport_events.ends)
            link.send(raw("x"))
            here.sockets.outbound.flush_now()
            assert len(here.transport_events.ends) == before
            if link.state != CLOSED:
                await asyncio.sleep(0)
        await until(lambda: here.transport_events.ends)
        assert loop.is_running()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_failing_write_tells_of_every_message_that_the_kernel_did_not_take(tls):
    """The peer has reset the connection, and the hub sends before it looks at the socket."""
    async with served(tls=tls) as here:
        _, link = await here.pair()
        room = here.sockets.outbound.new_group()
        room.add(link)
        link._socket = Failing(link._socket)
        link.write = link._writer
        big = "x" * MAX_JOINED_BYTES

        link.send(raw("a"))
        room.broadcast(raw("b"))
        room.broadcast(raw("left out"), skip=[link])
        room.broadcast(raw(big))
        link.send(raw("c"))
        here.sockets.outbound.flush_now()
        assert link.state == CLOSED
        room.broadcast(raw("d"))
        await turns()

        assert here.transport_events.reasons() == [Reason.WRITE_ERROR]
        told = [(frame.payload.decode(), offer) for _, frame, offer in here.transport_events.drops]
        assert told == [(text, Offer.CLOSED) for text in ("a", "b", big, "c", "d")]


async def test_messages_that_are_collected_when_the_connection_is_lost_are_told():
    async with served() as here:
        _, link = await here.pair()
        room = here.sockets.outbound.new_group()
        room.add(link)
        link.send(raw("a"))
        room.broadcast(raw("left out"), skip=[link])
        room.broadcast(raw("b"))
        link.abort()
        await turns()

        assert here.transport_events.reasons() == [Reason.CONNECTION_LOST]
        assert [frame.payload for _, frame, _ in here.transport_events.drops] == [b"a", b"b"]


@pytest.mark.parametrize(("taken", "lost"), [(0, "abc"), (1, "bc"), (12, "bc"), (13, "c")])
async def test_of_a_write_from_the_queue_those_without_a_written_byte_are_told(taken, lost):
    """Three messages of twelve bytes are joined when the socket is ready again, and it takes
    ``taken`` bytes before it fails."""
    async with served() as here:
        _, link = await here.pair()
        frames = [raw(n * 10) for n in "abc"]
        link.on_partial_write(frames, b"".join(f.for_wire(link.wire) for f in frames), 0)
        link._socket = Failing(link._socket, taken)
        link.on_writable()
        link.on_writable()
        await turns()

        assert link.state == CLOSED
        told = [frame.payload.decode()[0] for _, frame, _ in here.transport_events.drops]
        assert "".join(told) == lost


class Failing:
    """A socket that takes some bytes, then fails as one does whose peer has reset it."""

    def __init__(self, inner, taken=0):
        self._inner, self._taken = inner, taken

    def send(self, data):
        taken, self._taken = self._taken, 0
        if taken:
            return taken
        raise ConnectionResetError

    def __getattr__(self, name):
        return getattr(self._inner, name)
