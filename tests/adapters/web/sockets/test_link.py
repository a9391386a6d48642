"""What holds for a connection whatever carries its bytes: plain sockets and TLS alike."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from eyewall.adapters.web.sockets import link as link_module
from eyewall.adapters.web.sockets.backlog import MAX_CONTROL_BYTES
from eyewall.adapters.web.sockets.link import CLOSED, CONTROL_FRAME_BURST, OPEN
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.envelope import Priority
from eyewall.domain.outbox import DropPolicy, Offer, QueueConfig
from tests.adapters.web.support import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    UNIT,
    cut,
    header,
    masked,
    raw,
    served,
    turns,
    until,
)

pytestmark = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

KIB = 1024

MORE = masked("z" * 1000) * 10
"""What a peer goes on sending that has not read its close frame yet."""


async def stalled(here, **queue):
    """Return a client that does not read, its link, and how many messages were sent to
    it until the link noticed. Every message is 10 KiB and begins with its number."""
    client, link = await here.pair(small=True)
    client.pause()
    sent = 0
    while link._backlog is None:
        await numbered(link, sent)
        sent += 1
        await asyncio.sleep(0)
        assert sent < 5000
    return client, link, sent


async def numbered(link, number, size=10 * KIB, **fields):
    return link.send(raw(f"{number:06}".ljust(size, "."), **fields))


def numbers(texts):
    return [int(text[:6]) for text in texts]


# --- in


async def test_messages_are_handed_on_as_checked_bytes(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        client.write(masked("é") + masked(b"\xff", 0x82) + masked("fr", 0x01) + masked("ag", 0x80))

        assert [await client.frame() for _ in range(3)] == [
            (TEXT, "é".encode()),
            (BINARY, b"\xff"),
            (TEXT, b"frag"),
        ]
        assert here.transport_events.messages == [
            (link, "é".encode(), False),
            (link, b"\xff", True),
            (link, b"frag", False),
        ]


async def test_a_client_may_send_one_byte_at_a_time(tls):
    async with served(tls=tls) as here:
        client = await here.connect()
        data = masked("hello") + masked("x", 0x89) + masked("y" * 200)
        for byte in data:
            client.write(bytes((byte,)))
            await client.writer.drain()
            await asyncio.sleep(0)

        frames = [await client.frame() for _ in range(3)]
        assert (PONG, b"x") in frames
        assert [p for o, p in frames if o == TEXT] == [b"hello", b"y" * 200]


async def test_a_ping_is_answered_with_its_own_bytes(tls):
    async with served(tls=tls) as here:
        client = await here.connect()
        client.write(masked(b"\x00\xffping", 0x89))

        assert await client.frame() == (PONG, b"\x00\xffping")


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\x81\x02hi", 1002, "protocol_error"),
        (masked("x", 0xF1), 1002, "protocol_error"),
        (masked("x", 0x83), 1002, "protocol_error"),
        (masked("x", 0x80), 1002, "protocol_error"),
        (masked("", 0x09), 1002, "protocol_error"),
        (masked("x" * 126, 0x89), 1002, "protocol_error"),
        (masked(b"\x03\xed", 0x88), 1002, "protocol_error"),
        (masked(b"\x03", 0x88), 1002, "protocol_error"),
        (masked(b"\xff\xfe"), 1007, "invalid_utf8"),
        (masked(b"\x03\xe8\xff", 0x88), 1007, "invalid_utf8"),
        (header(1 << 21) + b"z" * (1 << 21), 1009, "message_too_big"),
        (masked("", 0x01) + masked("", 0x00) * 100, 1008, "policy_violation"),
        (masked("", 0x89) * (CONTROL_FRAME_BURST * 2), 1008, "policy_violation"),
    ],
)
async def test_a_violation_closes_with_its_code_which_no_reset_takes_away(tls, data, code, reason):
    """The peer goes on sending after its mistake, and still reads why it was closed."""
    async with served(tls=tls) as here:
        client = await here.connect()
        client.write(masked("good") + data + MORE)

        frames = [await client.frame()]
        while frames[-1][0] != CLOSE:
            frames.append(await client.frame())
        assert (TEXT, b"good") in frames
        assert frames[-1][1] == code.to_bytes(2, "big") + reason.encode()
        client.write(MORE + masked(frames[-1][1][:2], 0x88))
        assert await client.end() == b""
        client.leave()
        await until(lambda: not len(here.sockets))
        assert here.transport_events.reasons() == [Reason(reason)]
        assert [payload for _, payload, _ in here.transport_events.messages] == [b"good"]


async def test_a_close_frame_is_not_lost_to_what_was_not_read_yet(tls):
    """Much more is on its way than one read takes: closing at once would reset it all."""
    async with served(tls=tls) as here:
        client = await here.connect()
        client.pause()
        client.write(b"\x81\x02hi" + MORE * 100)
        await until(lambda: here.transport_events.ends)
        await turns(50)
        client.resume()

        assert await client.closed() == (1002, "protocol_error")


async def test_messages_of_one_client_are_handed_on_in_slices(tls):
    """Between two slices of a flood others have their turn."""
    async with served(tls=tls) as here:
        flood, link = await here.pair()
        other, quiet = await here.pair()
        here.transport_events.on_message = lambda *_: None
        flood.send(*(str(n) for n in range(1000)))
        other.send("hello")
        await until(lambda: len(here.transport_events.messages) == 1001)

        whose = [one for one, _, _ in here.transport_events.messages]
        assert whose.index(quiet) < 900
        got = [int(payload) for one, payload, _ in here.transport_events.messages if one is link]
        assert got == list(range(1000))


async def test_an_application_that_raises_ends_only_that_connection(tls):
    async with served(tls=tls) as here:

        def fragile(link, payload, binary):
            if payload == b"boom":
                raise RuntimeError("secret")
            here.transport_events.echo(link, payload, binary)

        here.transport_events.on_message = fragile
        bad, link = await here.pair()
        good = await here.connect()
        bad.send("boom")
        good.send("fine")

        assert await bad.closed() == (1011, "internal_error")
        assert await good.text() == "fine"
        assert here.transport_events.reasons(link) == [Reason.INTERNAL_ERROR]
        assert here.log.entries[-1][:2] == ("error", "connection_failed")


async def test_last_seen_moves_with_whatever_comes(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        for data in (masked("x"), masked("", 0x8A), b"\x81"):
            link.last_seen = 0.0
            client.write(data)
            await until(lambda: link.last_seen > 0.0)


# --- out


async def test_direct_messages_keep_their_order(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        for n in range(500):
            assert link.send(raw(str(n))) is Offer.QUEUED

        assert numbers(await client.texts(500)) == list(range(500))


async def test_a_stalled_client_gets_everything_in_order_once_it_reads(tls):
    async with served(tls=tls, queue=QueueConfig(size=100)) as here:
        client, link, sent = await stalled(here)
        for n in range(sent, sent + 50):
            assert await numbered(link, n) is Offer.QUEUED
        assert 50 <= link.queued <= 60
        client.resume()

        assert numbers(await client.texts(sent + 50)) == list(range(sent + 50))
        await until(lambda: link._backlog is None)
        assert link.queued == 0
        assert here.transport_events.drops == []
        link.send(raw("again"))
        assert await client.text() == "again"


async def test_drop_newest_keeps_what_came_first(tls):
    async with served(tls=tls, queue=QueueConfig(size=4)) as here:
        client, link, sent = await stalled(here)
        await turns()
        dropped = [int(f.payload[:6]) for _, f, _ in here.transport_events.drops]
        outcomes = [await numbered(link, n) for n in range(sent, sent + 10)]
        taken = outcomes.count(Offer.QUEUED)
        assert outcomes == [Offer.QUEUED] * taken + [Offer.DROPPED_NEWEST] * (10 - taken)
        assert link.queued <= 6
        client.resume()

        expected = [n for n in range(sent + taken) if n not in dropped]
        assert numbers(await client.texts(len(expected))) == expected
        # The sender was told of its own drops: only the others are reported.
        assert len(here.transport_events.drops) == len(dropped)
        assert here.transport_events.ends == []


async def test_a_queue_that_was_says_when_it_is_empty(tls):
    """Once, after the drops themselves."""
    async with served(tls=tls, queue=QueueConfig(size=4)) as here:
        client, link, sent = await stalled(here)
        while await numbered(link, sent) is Offer.QUEUED:
            sent += 1
            await turns()
        assert here.transport_events.drained_links == []
        client.resume()

        await client.texts(sent - len(here.transport_events.drops))
        await until(lambda: link._backlog is None)
        await turns()
        assert here.transport_events.drained_links == [link]


async def test_drop_oldest_keeps_what_came_last(tls):
    queue = QueueConfig(size=4, drop_policy=DropPolicy.DROP_OLDEST)
    async with served(tls=tls, queue=queue) as here:
        client, link, sent = await stalled(here)
        outcomes = [await numbered(link, n) for n in range(sent, sent + 20)]
        await turns()
        assert outcomes[-10:] == [Offer.DROPPED_OLDEST] * 10
        dropped = [int(f.payload[:6]) for _, f, _ in here.transport_events.drops]
        assert {offer for _, _, offer in here.transport_events.drops} == {Offer.DROPPED_OLDEST}
        client.resume()

        expected = [n for n in range(sent + 20) if n not in dropped]
        assert expected[-4:] == list(range(sent + 16, sent + 20))
        assert numbers(await client.texts(len(expected))) == expected


async def test_drop_and_disconnect_writes_what_was_queued_and_says_why(tls):
    queue = QueueConfig(size=4, drop_policy=DropPolicy.DROP_AND_DISCONNECT)
    async with served(tls=tls, queue=queue) as here:
        client, link, sent = await stalled(here)
        outcome = Offer.QUEUED
        while outcome is Offer.QUEUED:
            outcome = await numbered(link, sent)
            sent += 1
        assert outcome is Offer.OVERFLOWED
        assert here.transport_events.ends == []  # never from within a send
        await until(lambda: here.transport_events.reasons(link) == [Reason.SLOW_CONSUMER])
        assert link.send(raw("late")) is Offer.CLOSED
        client.resume()

        assert numbers(await client.texts(sent - 1)) == list(range(sent - 1))
        assert await client.closed() == (4413, "slow_consumer")
        client.leave()
        await until(lambda: link.state == CLOSED)
        assert here.transport_events.reasons(link) == [Reason.SLOW_CONSUMER]


async def test_drop_and_disconnect_in_a_fan_out_reports_what_did_not_fit(tls):
    queue = QueueConfig(size=4, drop_policy=DropPolicy.DROP_AND_DISCONNECT)
    async with served(tls=tls, queue=queue) as here:
        _, link, _ = await stalled(here)
        room = here.sockets.outbound.new_group()
        room.add(link)
        frames = [raw(f"{n:06}".ljust(KIB)) for n in range(10)]
        for frame in frames:
            room.broadcast(frame)
        await until(lambda: here.transport_events.ends)

        dropped = [frame for _, frame, _ in here.transport_events.drops]
        assert dropped == frames[-len(dropped) :]  # the one, and those that came behind it
        assert {offer for _, _, offer in here.transport_events.drops} == {Offer.OVERFLOWED}
        assert here.transport_events.reasons(link) == [Reason.SLOW_CONSUMER]


async def test_one_stalled_member_delays_no_other_and_keeps_little(tls):
    queue = QueueConfig(size=32, max_bytes=100 * KIB)
    async with served(tls=tls, queue=queue) as here:
        _, link, _ = await stalled(here)
        others = [await here.connect() for _ in range(3)]
        room = here.sockets.outbound.new_group()
        for member in here.transport_events.links:
            room.add(member)
        await turns()
        here.transport_events.drops.clear()

        async def read(client):
            return numbers(await client.texts(300))

        readers = [asyncio.create_task(read(client)) for client in others]
        tracemalloc.start()
        for n in range(300):
            await here.sockets.outbound.ready()
            room.broadcast(raw(f"{n:06}".ljust(20 * KIB)))
            await asyncio.sleep(0)
        for reader in readers:
            assert await reader == list(range(300))
        here.transport_events.drops, drops = [], here.transport_events.drops
        assert len(drops) > 250
        assert {one for one, _, _ in drops} == {link}
        count, drops = len(drops), None
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 1024 * KIB
        assert link._backlog._outbox.bytes <= 100 * KIB
        assert link.queued + count >= 290


async def test_a_higher_priority_overtakes_in_a_stalled_queue(tls):
    async with served(tls=tls) as here:
        client, link, sent = await stalled(here)
        for n in range(sent, sent + 5):
            await numbered(link, n)
        await numbered(link, 999_999, priority=Priority.HIGH)
        client.resume()

        got = numbers(await client.texts(sent + 6))
        assert got.index(999_999) < got.index(sent)
        assert [n for n in got if n != 999_999] == list(range(sent + 5))


async def test_small_queues_are_told_the_truth_within_one_turn(tls):
    """A handler that sends in a loop without waiting hears that the queue is full."""
    async with served(tls=tls, queue=QueueConfig(size=2)) as here:
        client, link = await here.pair(small=True)
        client.pause()
        for n in range(20_000):
            if await numbered(link, n) is Offer.DROPPED_NEWEST:
                break
        else:
            pytest.fail("the queue was never full")


async def test_a_pong_goes_out_before_what_waits_but_not_into_a_frame(tls):
    async with served(tls=tls, queue=QueueConfig(size=1000)) as here:
        client, link, sent = await stalled(here)
        for n in range(sent, sent + 40):
            await numbered(link, n)
        client.write(masked("now", 0x89))
        await until(lambda: link._backlog._control)
        client.resume()

        frames = [await client.frame() for _ in range(sent + 41)]
        assert frames.index((PONG, b"now")) < sent + 20
        assert numbers(p.decode() for o, p in frames if o == TEXT) == list(range(sent + 40))


async def test_pongs_for_a_client_that_does_not_read_have_a_bound(tls, monkeypatch):
    monkeypatch.setattr(link_module, "CONTROL_FRAME_BURST", 10_000)
    async with served(tls=tls) as here:
        client, link, _ = await stalled(here)
        client.write(masked(b"x" * 125, 0x89) * 500 + masked("end"))
        await until(lambda: here.transport_events.messages)

        assert len(link._backlog._control) < MAX_CONTROL_BYTES + 127


async def test_who_does_not_read_its_replies_is_not_read_either_until_it_does(tls):
    async with served(tls=tls, queue=QueueConfig(size=8)) as here:
        client, link, _ = await stalled(here)
        while not link._backlog.reading_paused:
            await numbered(link, 0)
        assert not link.is_reading
        client.send("unread")
        await turns(50)
        assert here.transport_events.messages == []
        client.resume()
        reader = asyncio.create_task(client.end())
        await until(lambda: here.transport_events.messages)

        assert [payload for _, payload, _ in here.transport_events.messages] == [b"unread"]
        assert link.is_reading
        link.abort()
        await reader


async def test_the_silence_of_a_peer_that_was_not_read_is_forgotten_when_it_is_again(tls):
    async with served(tls=tls, queue=QueueConfig(size=8)) as here:
        client, link, _ = await stalled(here)
        while not link._backlog.reading_paused:
            await numbered(link, 0)
        link.last_seen = 0.0
        client.resume()
        reader = asyncio.create_task(client.end())
        await until(lambda: link._backlog is None)

        assert link.last_seen > 0.0
        link.abort()
        await reader


async def test_a_stalled_connection_keeps_the_order_of_room_and_direct_messages(tls):
    """What a room has collected for it stands before a direct message sent after it."""
    async with served(tls=tls) as here:
        client, link, sent = await stalled(here)
        room = here.sockets.outbound.new_group()
        room.add(link)
        for n in range(sent, sent + 20, 2):
            room.broadcast(raw(f"{n:06}"))
            await numbered(link, n + 1, size=6)
        client.resume()

        assert numbers(await client.texts(sent + 20)) == list(range(sent + 20))


# --- the end


async def test_close_writes_what_was_sent_before_and_nothing_after(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        room = here.sockets.outbound.new_group()
        room.add(link)
        room.broadcast(raw("1"))
        link.send(raw("2"))
        link.close(Reason.SERVER_SHUTDOWN)
        room.broadcast(raw("late"))
        assert link.send(raw("late")) is Offer.CLOSED
        link.close(Reason.NORMAL)

        assert await client.texts(2) == ["1", "2"]
        assert await client.closed() == (1012, "server_shutdown")
        client.leave()
        await until(lambda: not len(here.sockets))
        assert here.transport_events.ends == []  # the application asked for it


async def test_close_of_a_stalled_connection_writes_its_queue_first(tls):
    async with served(tls=tls) as here:
        client, link, sent = await stalled(here)
        for n in range(sent, sent + 50):
            await numbered(link, n)
        link.close(Reason.DISCONNECTED)
        client.resume()

        assert numbers(await client.texts(sent + 50)) == list(range(sent + 50))
        assert await client.closed() == (4503, "disconnected")


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa1"])
async def test_a_clients_close_is_answered_with_its_code_after_what_was_sent(tls, payload):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        client.write(masked("hello") + masked(payload, 0x88) + masked("ignored"))

        assert await client.text() == "hello"
        assert await client.frame() == (CLOSE, payload[:2])
        assert await client.end() == b""
        client.leave()
        await until(lambda: link.state == CLOSED)
        assert here.transport_events.reasons() == [Reason.CLIENT_CLOSED]
        assert len(here.transport_events.messages) == 1


async def test_the_end_without_a_close_frame_is_a_lost_connection(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        client.leave()
        await until(lambda: here.transport_events.ends)
        await turns()

        assert here.transport_events.reasons(link) == [Reason.CONNECTION_LOST]
        assert link.state == CLOSED
        assert len(here.sockets) == 0


async def test_a_reset_in_the_middle_of_a_message_is_told_once(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        client.write(masked("x" * 1000)[:500])
        await until(lambda: link._parser is not None)
        client.abort()
        await until(lambda: here.transport_events.ends)
        link.send(raw("late"))
        link.close(Reason.NORMAL)
        await turns()

        assert here.transport_events.reasons(link) == [Reason.CONNECTION_LOST]


async def test_a_reset_of_a_stalled_connection_is_told_once(tls):
    async with served(tls=tls) as here:
        client, link, _ = await stalled(here)
        client.abort()
        await until(lambda: here.transport_events.ends)
        await turns()

        (reason,) = here.transport_events.reasons(link)
        assert reason in (Reason.CONNECTION_LOST, Reason.WRITE_ERROR, Reason.READ_ERROR)
        assert len(here.sockets) == 0


async def test_a_peer_that_does_not_close_its_side_is_cut_off_after_a_while(tls):
    times = HeartbeatConfig(interval=0.2, pong_timeout=0.4, write_wait=0.2)
    async with served(tls=tls, heartbeat=times) as here:
        client, link = await here.pair()
        client.pause()
        link.close(Reason.NORMAL)
        if tls:  # asyncio's TLS would answer the close by itself
            cut(client.writer)
        await until(lambda: link.state == CLOSED)
        assert here.transport_events.ends == []


async def test_a_peer_that_never_reads_is_cut_off_after_write_wait(tls):
    times = HeartbeatConfig(interval=5.0, pong_timeout=10.0, write_wait=0.2)
    async with served(tls=tls, heartbeat=times) as here:
        _, link, _ = await stalled(here)
        await until(lambda: here.transport_events.ends)
        assert here.transport_events.reasons(link) == [Reason.SLOW_CONSUMER]
        await until(lambda: link.state == CLOSED)


async def test_a_slow_reader_that_makes_progress_is_not_cut_off(tls):
    times = HeartbeatConfig(interval=30.0, pong_timeout=60.0, write_wait=1.0 * UNIT)
    async with served(tls=tls, heartbeat=times, queue=QueueConfig(size=1000)) as here:
        client, link, sent = await stalled(here)
        for n in range(sent, sent + 100):
            await numbered(link, n)
        began = asyncio.get_running_loop().time()
        client.resume()
        got = []
        for _ in range(sent + 100):
            got.append(await client.text())
            if len(got) > sent and asyncio.get_running_loop().time() - began < 2.0 * UNIT:
                await asyncio.sleep(0.02)

        assert numbers(got) == list(range(sent + 100))
        assert link.state == OPEN


# --- heartbeat


async def test_a_silent_peer_is_pinged_and_closed(tls):
    times = HeartbeatConfig(interval=0.1 * UNIT, pong_timeout=1.0 * UNIT, write_wait=5.0)
    async with served(tls=tls, heartbeat=times) as here:
        client, link = await here.pair()

        assert await client.frame() == (PING, b"")
        assert await client.frame() == (PING, b"")
        opcode, payload = await client.frame()
        while opcode == PING:
            opcode, payload = await client.frame()
        assert (opcode, payload) == (CLOSE, (4408).to_bytes(2, "big") + b"heartbeat_timeout")
        assert here.transport_events.reasons(link) == [Reason.HEARTBEAT_TIMEOUT]


SOON = HeartbeatConfig(interval=0.2 * UNIT, pong_timeout=0.4 * UNIT, write_wait=5.0)
"""With a limit of 4 KiB a message may take this ``pong_timeout`` and half a second."""


async def trickle(client, data):
    """Send a byte now and then until the end comes; returns the close frame's payload."""

    async def send():
        for byte in data:
            client.write(bytes((byte,)))
            await asyncio.sleep(0.02)

    sending = asyncio.create_task(send())
    try:
        opcode, payload = await client.frame()
        while opcode in (PING, PONG):
            opcode, payload = await client.frame()
        assert opcode == CLOSE
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()
    finally:
        sending.cancel()


@pytest.mark.parametrize(
    "data",
    [
        masked("x" * 4000),
        masked("x", 0x01) + masked("x", 0x00) * 1000,
        masked("x", 0x01) + masked("", 0x89) * 1000,
    ],
    ids=["byte by byte", "in fragments", "with pings between"],
)
async def test_a_message_that_never_ends_ends_the_connection(tls, data):
    """Whatever comes meanwhile, pings too: the peer is not silent, and yet says nothing."""
    async with served(tls=tls, heartbeat=SOON, max_message_size=4096) as here:
        client, link = await here.pair()

        assert await trickle(client, data) == (1008, "policy_violation")
        assert here.transport_events.reasons(link) == [Reason.POLICY_VIOLATION]
        assert link._parser is None


async def test_messages_that_come_slowly_but_come_are_welcome(tls):
    """However long there is always the beginning of another."""
    async with served(tls=tls, heartbeat=SOON, max_message_size=4096) as here:
        client, link = await here.pair()
        whole = masked("hello")
        client.write(whole[:3])
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 2 * here.io.message_timeout:
            client.write(whole[3:] + whole[:3])
            opcode, _ = await client.frame()
            assert opcode in (TEXT, PING)
            await asyncio.sleep(0.02)

        assert link.state == OPEN
        assert link._parser is not None


async def test_the_time_in_which_a_peer_is_not_read_is_not_its_own(tls):
    async with served(tls=tls, queue=QueueConfig(size=8)) as here:
        client, link, _ = await stalled(here)
        client.write(masked("x" * 100)[:50])
        await until(lambda: link._parser)
        while not link._backlog.reading_paused:
            await numbered(link, 0)
        before = link.message_deadline
        link.last_seen -= 1000.0  # as if it had been paused for so long
        client.resume()
        reader = asyncio.create_task(client.end())
        await until(lambda: link._backlog is None)

        assert before + 999 < link.message_deadline < before + 1010
        link.abort()
        await reader


async def test_a_peer_that_answers_pings_stays(tls):
    times = HeartbeatConfig(interval=0.1 * UNIT, pong_timeout=1.0 * UNIT, write_wait=5.0)
    async with served(tls=tls, heartbeat=times) as here:
        client, link = await here.pair()
        for _ in range(15):  # for longer than the timeout
            assert await client.frame() == (PING, b"")
            client.write(masked("", 0x8A))

        assert link.state == OPEN
        assert here.transport_events.ends == []


async def test_an_idle_link_holds_nothing_of_its_own(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        client.write(masked("fr", 0x01) + masked("", 0x89) + masked("ag", 0x80))
        assert await client.frame() == (PONG, b"")
        assert await client.text() == "frag"

        assert (link.pending, link._backlog, link._parser) == (None, None, None)
        assert not hasattr(link, "__dict__")


async def test_a_link_is_crowded_when_half_of_its_queue_is_used(tls):
    async with served(tls=tls, queue=QueueConfig(size=8)) as here:
        client, link, sent = await stalled(here)
        assert not link.is_half_full
        while not link.is_half_full:
            await numbered(link, sent)
            sent += 1
        assert link.queued <= 6
        client.resume()

        await client.texts(sent)
        await until(lambda: not link.is_half_full)
