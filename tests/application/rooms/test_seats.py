"""Seats in the cluster's state, and the names under which they stand."""

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.rooms.seats import Seats
from eyewall.domain.errors import RoomNotFound
from eyewall.domain.identity import ConnMeta
from eyewall.domain.room import JoinOptions, LeaveReason, RoomOptions, RoomRole
from tests.application.engines import Engine
from tests.application.fakes import FakeClock


class Conn:
    """As much of a connection as seats are about."""

    def __init__(self, conn_id, user=None, roles=()):
        self.id = conn_id
        self.meta = ConnMeta(user_id=user, roles=roles)
        self.roles = {}

    @property
    def user_id(self):
        return self.meta.user_id

    def becomes(self, user):
        before = self.user_id
        self.meta = ConnMeta(user_id=user)
        return before


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def engine(clock):
    return Engine(MemoryState(clock=clock.now))


@pytest.fixture
def seats(engine, clock):
    return Seats(node="n1", state=engine, clock=clock, implicit=True, invite_grace=30.0)


async def standing_of(engine, room="lab"):
    return {key: list(s.seats) for key, s in (await engine.inner.standings(room)).items()}


async def test_a_seat_is_taken_and_given_back(seats, engine):
    ada, phone = Conn("c1", "ada"), Conn("c2", "ada")

    first = await seats.take("lab", ada, None)
    second = await seats.take("lab", phone, JoinOptions(role=RoomRole.GUEST))

    assert (first.role, first.members, first.connections) == (RoomRole.MEMBER, 1, 1)
    assert (second.role, second.members, second.connections) == (RoomRole.GUEST, 2, 2)
    assert await seats.holds("lab", ada)
    left = await seats.give_back("lab", ada, LeaveReason.LEFT)
    assert (left.user_id, left.connections) == ("ada", 1)
    assert not await seats.holds("lab", ada)
    assert await standing_of(engine) == {"u:ada": ["c2"]}


async def test_what_is_not_there_is_given_back_without_a_word(seats, engine):
    ada = Conn("c1", "ada")

    left = await seats.give_back("lab", ada, LeaveReason.LEFT)

    assert (left.connections, left.announce) == (0, False)
    assert await engine.inner.room("lab") is None


async def test_only_a_seat_that_was_there_is_announced(seats, engine):
    ada = Conn("c1", "ada")

    def rule(room, _):
        room = seats.implicit_room("lab")
        room.create(RoomOptions(announce=True))
        return room, None

    await engine.inner.decide("lab", None, rule)

    assert (await seats.take("lab", ada, None)).announce
    assert (await seats.give_back("lab", ada, LeaveReason.LEFT)).announce
    assert not (await seats.give_back("lab", ada, LeaveReason.LEFT)).announce


async def test_an_anonymous_connection_has_a_standing_of_its_own(seats, engine):
    await seats.take("lab", Conn("c1"), None)
    await seats.take("lab", Conn("c2"), None)

    assert await standing_of(engine) == {"c:c1": ["c1"], "c:c2": ["c2"]}


async def test_a_room_arises_unless_rooms_have_to_be_created(seats, engine, clock):
    strict = Seats(node="n1", state=engine, clock=clock, implicit=False, invite_grace=30.0)

    with pytest.raises(RoomNotFound):
        await strict.take("lab", Conn("c1"), None)
    assert (seats.implicit_room("lab").id, seats.implicit_room("lab").created_at) == (
        "lab",
        clock.wall(),
    )


async def test_a_seat_stands_under_its_old_name_until_it_is_given_back(seats, engine):
    conn = Conn("c1", "ada")
    await seats.take("lab", conn, None)
    conn.roles["lab"] = RoomRole.MEMBER
    seats.user_changed(conn, conn.becomes("bob"))

    assert seats.seats_under_old_user(conn) == ["lab"]
    assert seats.user_in("lab", conn) == "ada"
    assert await seats.holds("lab", conn)

    left = await seats.give_back("lab", conn, LeaveReason.LEFT)

    assert left.user_id == "ada"
    assert await standing_of(engine) == {}
    assert seats.seats_under_old_user(conn) == []
    assert seats.user_in("lab", conn) == "bob"


async def test_of_several_names_the_one_counts_under_which_it_was_taken(seats):
    conn = Conn("c1", None)
    await seats.take("lab", conn, None)
    conn.roles["lab"] = RoomRole.MEMBER
    seats.user_changed(conn, conn.becomes("ada"))
    seats.user_changed(conn, conn.becomes("bob"))

    assert seats.user_in("lab", conn) is None
    seats.user_changed(conn, conn.becomes(None))
    assert seats.seats_under_old_user(conn) == []


async def test_a_name_that_changes_while_the_state_decides_is_noted(seats, engine):
    conn = Conn("c1", "ada")
    decide = engine.inner.decide

    async def slowly(*args):
        result = await decide(*args)
        seats.user_changed(conn, conn.becomes("bob"))
        return result

    engine.inner.decide = slowly

    await seats.take("lab", conn, None)

    assert seats.user_in("lab", conn) == "ada"


async def test_who_is_out_of_a_room_has_no_name_in_it(seats):
    conn = Conn("c1", "ada")
    conn.roles.update(lab=RoomRole.MEMBER, hall=RoomRole.MEMBER)
    seats.user_changed(conn, conn.becomes("bob"))

    seats.forget_room("lab", conn)
    seats.forget_room("lab", conn)

    assert seats.seats_under_old_user(conn) == ["hall"]


async def test_the_role_of_a_seat_is_what_the_store_says(seats, engine):
    conn = Conn("c1", "ada")
    assert await seats.role("lab", conn) is None
    await seats.take("lab", conn, JoinOptions(role=RoomRole.GUEST))

    assert await seats.role("lab", conn) is RoomRole.GUEST
    engine.away = True
    assert await seats.role("lab", conn) is None


async def test_who_has_ended_is_forgotten(seats):
    conn = Conn("c1", "ada")
    conn.roles["lab"] = RoomRole.MEMBER
    seats.user_changed(conn, conn.becomes("bob"))

    seats.forget(conn)

    assert seats.seats_under_old_user(conn) == []
    seats.forget(conn)
