"""What becomes of one message that a client receives."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from eyewall.client.receiver import Receiver
from eyewall.client.requests import Requests
from eyewall.client.rooms import RoomTracker
from tests.application.fakes import RecordingLogger
from tests.entrypoints.wire import soon


class Link:
    """A connection that keeps what would be written."""

    def __init__(self) -> None:
        self.written: list[dict] = []
        self.reconnect_in: float | None = None
        self.stirred = asyncio.Event()

    def post(self, frame: bytes) -> bool:
        self.written.append(json.loads(frame))
        self.stirred.set()
        return True

    async def next(self) -> dict:
        while not self.written:
            self.stirred.clear()
            await soon(self.stirred.wait())
        return self.written.pop(0)["data"]


class Desk:
    """A receiver, and what it tells of."""

    def __init__(self) -> None:
        self.link = Link()
        self.rooms: RoomTracker = RoomTracker()
        self.requests = Requests()
        self.behind = 0
        self.lost: list = []
        self.logger = RecordingLogger()
        self.receiver = Receiver(
            rooms=self.rooms,
            requests=self.requests,
            logger=self.logger,
            queue=4,
            gap_found=self.notice,
            lost=lambda room, code: self.lost.append((room, code)),
        )
        self.counts = self.receiver.counts

    def notice(self) -> None:
        self.behind += 1

    def get(self, topic: str, data=None, *, link=None, **fields) -> None:
        frame = json.dumps({"topic": topic, "data": data, **fields})
        self.receiver.received(link or self.link, frame)

    def placed(self, offset: int, epoch: str = "e", **fields) -> None:
        place = {"room": "r", "epoch": epoch, "offset": offset}
        self.get("room:r", offset, **{"id": f"{epoch}{offset}", "stream": place, **fields})

    def waiting(self) -> list:
        box = self.receiver.iteration_queue
        return [arrival.message.data for arrival, _ in box._items]


@pytest.fixture
def desk():
    return Desk()


@contextlib.asynccontextmanager
async def working(desk):
    task = asyncio.ensure_future(desk.receiver.run())
    yield
    desk.receiver.callback_queue.close()
    await soon(task)


# --- which way it goes


@pytest.mark.parametrize("frame", ["", "hello", "{}"])
def test_what_is_no_message_is_counted(desk, frame):
    desk.receiver.received(desk.link, frame)

    assert desk.counts.unreadable == 1


def test_what_no_callback_takes_waits_for_the_iteration(desk):
    desk.receiver.callbacks.add("chat:*", print)
    desk.get("news", 1)
    desk.get("chat:a", 2)

    assert desk.waiting() == [1]
    assert len(desk.receiver.callback_queue) == 1


def test_an_error_that_answers_nothing_is_a_message(desk):
    desk.get("chat:say", {"code": "forbidden"}, event="error")

    assert desk.waiting() == [{"code": "forbidden"}]


@pytest.mark.parametrize("event", ["ack", "error", "join", "leave", "typing", "gap", "kicked"])
@pytest.mark.parametrize("topic", ["orders", "room:r"])
def test_an_application_s_event_may_have_any_name(desk, event, topic):
    desk.get(topic, {"code": 7, "message_id": "order-5"}, event=event, id="m1", ack=True)
    desk.get(topic, "plain", event=event, id="m2")

    assert desk.waiting() == [{"code": 7, "message_id": "order-5"}, "plain"]


@pytest.mark.parametrize("event", ["ack", "error"])
def test_in_a_room_with_history_it_moves_the_place_on(desk, event):
    desk.placed(1, event=event)
    desk.placed(2)
    desk.placed(1, event=event)

    assert desk.waiting() == [1, 2]
    assert (desk.counts.repeats, desk.counts.gaps) == (1, 0)


async def test_it_is_acked_as_often_as_it_comes_and_handled_once(desk):
    done = []
    desk.receiver.callbacks.add("orders", lambda message: done.append(message.event))
    async with working(desk):
        for _ in range(2):
            desk.get("orders", 7, event="ack", id="m1", ack=True)
            assert (await desk.link.next())["message_id"] == "m1"

    assert done == ["ack"]


@pytest.mark.parametrize(
    "fields",
    [
        {"ref": "long gone"},
        {"data": {"message_id": "long gone", "status": "ok"}},
        {"ref": "long gone", "data": {"status": "nack", "code": "forbidden"}},
        {"topic": ""},
    ],
)
def test_a_late_ack_is_no_message(desk, fields):
    desk.get(**{"topic": "orders", "event": "ack", **fields})

    assert desk.waiting() == []
    assert desk.counts.unreadable == 0


async def test_an_answer_with_an_id_of_its_own_is_one(desk):
    with desk.requests.open("orders", 1) as pending:
        desk.get("orders", {"sum": 3}, event="ack", ref=pending.id, id="m1")

        assert (await pending.answer)["sum"] == 3
    assert desk.waiting() == []


@pytest.mark.parametrize("code", [[], {}, 5, None])
async def test_a_server_that_keeps_to_nothing_ends_nothing(desk, code):
    desk.rooms.joined("r", None, None)

    def answered(answer):
        assert desk.rooms.apply_answer("r", answer["rooms"]["r"]).lost
        raise LookupError

    with desk.requests.open("system:resume", {}, on_answer=answered) as pending:
        desk.get("system:resume", {"rooms": {"r": {"code": code}}}, event="ack", ref=pending.id)
        desk.get("news", 1)

    assert desk.waiting() == [1]
    assert desk.logger.of("error") == ["message_failed"]


def test_without_an_iteration_the_first_wait_and_the_rest_is_counted(desk):
    for number in range(6):
        desk.get("news", number, id=f"n{number}", ack=True)

    assert desk.waiting() == [0, 1, 2, 3]
    assert desk.counts.dropped == 2
    assert desk.link.written == [], "the server may try again with what was not taken"


def test_what_was_dropped_can_come_again(desk):
    for number in range(5):
        desk.get("news", number, id=f"n{number}")
    desk.receiver.iteration_queue.clear()
    desk.get("news", 4, id="n4")

    assert desk.waiting() == [4]


# --- notices of the server


def test_a_drain_says_when_to_come_back(desk):
    desk.get("system:draining", {"reconnect_in": 2.5}, event="draining")

    assert desk.link.reconnect_in == 2.5
    assert desk.waiting() == []


def test_who_is_kicked_is_not_in_the_room_and_is_told(desk):
    desk.rooms.joined("r", None, None)
    desk.get("system:kicked", {"room": "r", "reason": "rude"}, event="kicked")

    assert "r" not in desk.rooms
    assert desk.waiting() == [{"room": "r", "reason": "rude"}]


def test_a_gap_is_asked_for(desk):
    desk.rooms.joined("r", "e", 3)
    desk.get("system:gap", {"room": "r", "epoch": "e", "offset": 3}, event="gap")

    assert desk.behind == 1
    assert desk.rooms.request_gaps() == {"r": {"epoch": "e", "offset": 3}}


def test_a_notice_goes_to_a_callback_for_it_too(desk):
    desk.receiver.callbacks.add("system:draining", print, system=True)
    desk.get("system:draining", {"reconnect_in": 2.5}, event="draining")

    assert len(desk.receiver.callback_queue) == 1


@pytest.mark.parametrize("topic", ["system:draining", "system:kicked", "system:gap", "system:new"])
@pytest.mark.parametrize("data", [None, 5, {}, {"room": 5}, {"room": "r", "reconnect_in": "x"}])
def test_a_notice_that_says_nothing_changes_nothing(desk, topic, data):
    desk.get(topic, data)

    assert desk.waiting() == [] or topic == "system:kicked"
    assert desk.link.reconnect_in is None


def test_a_notice_that_python_cannot_hold_is_counted(desk):
    desk.receiver.received(desk.link, '{"topic": "system:gap", "data": 1e999}')

    assert desk.counts.unreadable == 1


# --- rooms with history


def test_messages_are_taken_in_their_order_and_once(desk):
    for offset in (1, 2, 2, 4, 1, 3):
        desk.placed(offset)

    assert desk.waiting() == [1, 2, 3]
    assert (desk.counts.repeats, desk.counts.gaps) == (2, 1)
    assert desk.behind == 1


def test_a_full_queue_leaves_a_gap_to_be_filled_when_it_has_drained(desk):
    for offset in range(1, 7):
        desk.placed(offset)
    assert desk.waiting() == [1, 2, 3, 4]
    assert desk.counts.dropped == 0
    assert desk.rooms.request_gaps() == {}
    desk.receiver.iteration_queue.clear()

    assert desk.rooms.request_gaps() == {"r": {"epoch": "e", "offset": 4}}


async def test_the_drained_queue_says_so(desk):
    for offset in range(1, 6):
        desk.placed(offset)
    before = desk.behind
    for _ in range(4):
        await desk.receiver.iteration_queue.get()

    assert desk.behind == before + 1


def test_a_new_epoch_is_a_loss(desk):
    desk.placed(1)
    desk.placed(1, "f")

    assert desk.waiting() == [1, 1]
    assert desk.lost == [("r", None)]


def test_the_place_moves_on_over_a_message_that_came_under_its_id_before(desk):
    desk.get("room:r", "direct", id="e1")
    desk.placed(1)
    desk.placed(2)

    assert desk.waiting() == ["direct", 2]


# --- acks


async def test_an_ack_follows_the_callback_with_its_result(desk):
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(message):
        begun.set()
        await go.wait()
        return {"seen": message.data}

    desk.receiver.callbacks.add("order", slow)
    async with working(desk):
        desk.get("order", 7, id="m1", ack=True)
        await soon(begun.wait())
        assert desk.link.written == []
        go.set()

        assert await desk.link.next() == {
            "message_id": "m1",
            "status": "ok",
            "result": {"seen": 7},
        }


async def test_a_callback_that_raises_is_a_nack_with_its_text(desk):
    def broken(message):
        raise KeyError("stock")

    desk.receiver.callbacks.add("order", broken)
    async with working(desk):
        desk.get("order", 7, id="m1", ack=True)

        assert await desk.link.next() == {
            "message_id": "m1",
            "status": "nack",
            "error": "'stock'",
        }
    assert desk.logger.fields("callback_failed")["callback"] == "order"


async def test_an_error_without_a_text_is_named(desk):
    async def broken(message):
        raise asyncio.CancelledError

    desk.receiver.callbacks.add("order", broken)
    async with working(desk):
        desk.get("order", 7, id="m1", ack=True)

        assert (await desk.link.next())["error"] == "CancelledError"


async def test_a_result_that_cannot_be_sent_is_a_nack(desk):
    desk.receiver.callbacks.add("order", lambda message: object())
    async with working(desk):
        desk.get("order", 7, id="m1", ack=True)

        assert (await desk.link.next())["status"] == "nack"
    assert desk.logger.fields("result_not_sent")["topic"] == "order"


async def test_who_asks_for_no_ack_gets_none(desk):
    done = []
    desk.receiver.callbacks.add("order", done.append)
    async with working(desk):
        desk.get("order", 7, id="m1")
        desk.get("order", 8, id="m2", ack=True)

        assert (await desk.link.next())["message_id"] == "m2"
    assert [message.data for message in done] == [7, 8]


async def test_a_repeat_is_acked_again_and_not_handled_again(desk):
    done = []
    desk.receiver.callbacks.add("order", lambda m: done.append(m) or len(done))
    async with working(desk):
        desk.get("order", 7, id="m1", ack=True)
        first = await desk.link.next()
        desk.get("order", 7, id="m1", ack=True)

        assert await desk.link.next() == first
    assert len(done) == 1
    assert desk.counts.repeats == 1


async def test_a_repeat_that_comes_meanwhile_moves_the_ack_to_where_it_came(desk):
    """The client was cut off while it worked: the ack goes over the new connection."""
    go = asyncio.Event()

    async def slow(message):
        await go.wait()

    later = Link()
    desk.receiver.callbacks.add("order", slow)
    async with working(desk):
        desk.get("order", 7, id="m1", ack=True)
        desk.get("order", 7, id="m1", ack=True, link=later)
        desk.get("order", 7, id="m1", link=later)
        go.set()

        assert (await later.next())["message_id"] == "m1"
    assert desk.link.written == []
    assert later.written == [], "exactly one"


def test_a_message_of_long_ago_is_acked_by_its_place(desk):
    desk.rooms.joined("r", "e", 5)
    desk.placed(2, ack=True)

    assert desk.link.written[0]["data"] == {"message_id": "e2", "status": "ok"}
    assert desk.waiting() == []


def test_what_is_ahead_of_its_turn_is_not_acked(desk):
    desk.rooms.joined("r", "e", 5)
    desk.placed(7, ack=True)

    assert desk.link.written == []


@pytest.mark.parametrize("is_asked", [False, True])
async def test_it_is_acked_when_it_has_come_again_as_the_room_keeps_it(desk, is_asked):
    """That does not ask for an ack, and the server may not ask again."""
    desk.receiver.callbacks.add("room:r", lambda message: message.data)
    desk.placed(1)
    if is_asked:
        desk.rooms.request_all()
    desk.placed(3, ack=True)
    desk.placed(2)
    assert desk.link.written == []
    desk.placed(3)
    desk.placed(4)
    async with working(desk):
        assert (await desk.link.next())["result"] == 3

    assert desk.link.written == []


async def test_so_is_one_that_had_no_place_in_its_queue(desk):
    for offset in range(1, 6):
        desk.placed(offset, ack=offset == 5)
    desk.receiver.iteration_queue.clear()
    desk.placed(5)
    ((arrival, _),) = desk.receiver.iteration_queue._items
    arrival.settle(b'{"data": "handled"}')

    assert await desk.link.next() == "handled"


async def test_one_that_was_handled_before_is_acked_at_once_where_a_replay_goes_back(desk):
    """The replay may never come so far, or find that it has been handled."""
    for offset in range(1, 4):
        desk.placed(offset)
        arrival = await desk.receiver.iteration_queue.get()
        arrival.settle(b'{"data": "handled"}')
    desk.rooms.begin_replay("r", "start")
    desk.placed(1)
    desk.placed(3, ack=True)

    assert await desk.link.next() == "handled"
