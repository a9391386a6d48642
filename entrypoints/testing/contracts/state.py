"""The promises of a ``StateStore`` as tests, for authors of a store.

Derive a class, return a client of your engine and a function that lets its time pass from its
fixtures, and run pytest::

    from eyewall.testing.contracts import StateContract

    class TestMyState(StateContract):
        @pytest.fixture
        def connect(self):
            return lambda: MyState("my://localhost")

        @pytest.fixture
        def advance(self):
            return asyncio.sleep        # or move the engine's clock

``connect()`` returns a new client that is not open yet. All clients of a test see the same state,
which is empty at the beginning. ``connect`` is called in several threads, each with an event loop
of its own. The tests open and close a client that has ``open`` and ``close``.
``advance(seconds)`` returns when that time has passed for leases. The tests let leases of
``lease`` seconds expire. They are ``async`` and need pytest-asyncio with ``asyncio_mode = auto``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from eyewall.application.ports.stores import KnowsOwned, StateStore, has_methods_of
from eyewall.domain.errors import Refused, RoomFull
from eyewall.domain.identity import RoomId
from eyewall.domain.room import Room, RoomOptions, RoomRole, Standing
from eyewall.testing.contracts.bus import Connect, opened
from eyewall.testing.contracts.rules import NOW, at, creates, grants, joins, leaves, looks

Advance = Callable[[float], Awaitable[Any]]


class _Failed(Exception):
    """The error that a rule of a test raises."""


class StateContract:
    """The promises of ``StateStore``, one test per promise."""

    lease = 10.0
    """Seconds of a lease that the tests let expire."""

    @pytest.fixture
    def connect(self) -> Connect:
        """Return a function that makes a client of the store, not open yet. To be overridden."""
        raise NotImplementedError("return a function that makes a client of your engine")

    @pytest.fixture
    def advance(self) -> Advance:
        """Return a function that lets time pass for leases. To be overridden."""
        raise NotImplementedError("return a function that lets the leases of your engine age")

    @pytest.fixture
    async def state(self, connect: Connect) -> AsyncIterator[StateStore]:
        async with opened(connect()) as client:
            await client.renew("n1", 600.0)
            await client.renew("n2", 600.0)
            yield client

    @pytest.fixture
    async def other(self, connect: Connect, state: StateStore) -> AsyncIterator[StateStore]:
        """The client of another server on the same store."""
        async with opened(connect()) as client:
            yield client

    # --- decisions

    async def test_a_decision_returns_what_the_rule_does(self, state: Any) -> None:
        assert await state.decide("lab", "u:ada", joins("c1")) == 1
        assert await state.decide("lab", "u:ada", joins("c2")) == 2

    async def test_a_rule_sees_what_earlier_ones_did(self, state: Any, other: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))

        room, ada = await other.decide("lab", "u:ada", looks)

        assert (room.id, room.seats, room.created_at) == ("lab", 1, NOW)
        assert list(ada.seats) == ["c1"]
        assert (ada.seats["c1"].node, ada.seats["c1"].joined_at) == ("n1", NOW)

    async def test_a_rule_about_nothing_sees_nothing(self, state: Any) -> None:
        assert await state.decide("lab", "u:ada", looks) == (None, Standing())
        assert await state.room("lab") is None

    async def test_a_rule_sees_one_standing_and_not_another(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))

        _, bob = await state.decide("lab", "u:bob", looks)
        _, nobody = await state.decide("lab", None, looks)

        assert bob == nobody == Standing()

    async def test_rooms_do_not_mix(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))

        assert await state.decide("hall", "u:ada", looks) == (None, Standing())

    async def test_a_rule_that_raises_leaves_nothing_behind(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))

        def fails(room: Any, standing: Any) -> Any:
            joins("c2")(room, standing)
            room.options = RoomOptions(capacity=7)
            standing.seats["c1"].role = RoomRole.OWNER
            raise _Failed

        with pytest.raises(_Failed):
            await state.decide("lab", "u:ada", fails)

        room, ada = await state.decide("lab", "u:ada", looks)
        assert (room.seats, room.options) == (1, RoomOptions())
        assert list(ada.seats) == ["c1"]
        assert ada.seats["c1"].role is RoomRole.MEMBER

    async def test_a_rule_that_raises_makes_no_room(self, state: Any) -> None:
        def fails(*_: Any) -> Any:
            raise _Failed

        with pytest.raises(_Failed):
            await state.decide("lab", "u:ada", fails)

        assert await state.room("lab") is None

    async def test_all_options_of_a_room_are_kept(self, state: Any, other: Any) -> None:
        options: dict[str, Any] = {
            "policy": "private",
            "capacity": 3,
            "allowed_roles": ["staff", "ops"],
            "auto_cleanup": False,
            "history_size": 10,
            "history_ttl": 60.0,
            "announce": True,
            "metadata": {"title": "Lab", "n": [1, {"a": None}]},
        }
        await state.decide("lab", None, creates(**options))

        assert (await other.room("lab")).options == RoomOptions(**options)

    async def test_all_of_a_standing_is_kept(self, state: Any, other: Any) -> None:
        def rule(room: Any, standing: Any) -> Any:
            room = room or Room(RoomId("lab"), RoomOptions(), NOW)
            room.grant(standing, RoomRole.GUEST)
            room.ban(standing, now=NOW, duration=timedelta(seconds=90.5))
            standing.invited, standing.invite_until = True, at(0.25)
            return room, standing.copy()

        kept = await state.decide("lab", "u:ada", rule)

        assert (await other.decide("lab", "u:ada", looks))[1] == kept

    async def test_a_ban_for_ever_is_kept(self, state: Any, other: Any) -> None:
        def rule(room: Any, standing: Any) -> Any:
            room = room or Room(RoomId("lab"), RoomOptions(), NOW)
            room.ban(standing, now=NOW, duration=None)
            return room, None

        await state.decide("lab", "u:ada", rule)

        _, ada = await other.decide("lab", "u:ada", looks)
        assert ada.is_banned(at(10**9))

    async def test_a_room_without_seats_that_does_not_last_is_gone(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))
        await state.decide("lab", "u:ada", leaves("c1"))

        assert await state.room("lab") is None
        assert await state.decide("lab", "u:ada", looks) == (None, Standing())

    async def test_a_room_that_lasts_stays_with_its_standings(self, state: Any) -> None:
        await state.decide("lab", "u:ada", grants(RoomRole.ADMIN))
        await state.decide("lab", "u:bob", joins("c1"))
        await state.decide("lab", "u:bob", leaves("c1"))

        room, ada = await state.decide("lab", "u:ada", looks)

        assert room.seats == 0
        assert ada.role is RoomRole.ADMIN

    async def test_a_room_that_its_rule_gives_up_is_gone(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))

        await state.decide("lab", None, lambda *_: (None, None))

        assert await state.room("lab") is None
        assert await state.standings("lab") == {}

    async def test_what_is_handed_out_is_a_copy(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))

        (await state.room("lab")).seats = 99
        (await state.standings("lab"))["u:ada"].seats.clear()

        assert (await state.room("lab")).seats == 1
        assert list((await state.standings("lab"))["u:ada"].seats) == ["c1"]

    async def test_standings_are_those_with_seats(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))
        await state.decide("lab", "c:c2", joins("c2", "n2"))
        await state.decide("lab", "u:eve", grants(RoomRole.ADMIN))

        found = await state.standings("lab")

        assert {key: list(standing.seats) for key, standing in found.items()} == {
            "u:ada": ["c1"],
            "c:c2": ["c2"],
        }

    async def test_an_unknown_room_has_no_standings(self, state: Any) -> None:
        assert await state.standings("lab") == {}

    async def test_names_may_hold_any_printable_character(self, state: Any) -> None:
        room_id, user = "a b:*{}[]?\\\"'ü😀", "u:ada {lab} \\ 😀"

        def rule(room: Any, standing: Any) -> Any:
            room = room or Room(RoomId(room_id), RoomOptions(), NOW)
            room.admit(standing, "c 1@n:1", "n:1 {x}", now=NOW)
            return room, None

        await state.decide(room_id, user, rule)

        assert await state.rooms() == [room_id]
        assert list((await state.standings(room_id))[user].seats) == ["c 1@n:1"]

    # --- at the same time

    async def test_decisions_at_the_same_time_are_made_one_after_the_other(
        self, state: Any, other: Any
    ) -> None:
        """Concurrent joins of several clients never exceed the capacity."""
        await state.decide("lab", None, creates(capacity=10))

        async def join(number: int) -> int:
            client = (state, other)[number % 2]
            try:
                await client.decide("lab", f"u:{number}", joins(f"c{number}"))
            except RoomFull:
                return 0
            return 1

        assert sum(await asyncio.gather(*(join(number) for number in range(50)))) == 10
        assert (await state.room("lab")).seats == 10
        assert len(await state.standings("lab")) == 10

    async def test_decisions_from_several_threads_are_too(
        self, state: Any, connect: Connect
    ) -> None:
        await state.decide("lab", None, creates(capacity=10))

        async def joins_and_leaves(thread: int) -> None:
            async with opened(connect()) as client:
                for number in range(25):
                    conn_id = f"c{thread}-{number}"
                    await client.decide("lab", f"u:{thread}", joins(conn_id))
                    await client.decide("lab", f"u:{thread}", leaves(conn_id))
                await client.decide("lab", f"u:{thread}", joins(f"c{thread}"))

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(4) as pool:
            work = [
                loop.run_in_executor(pool, asyncio.run, joins_and_leaves(thread))
                for thread in range(4)
            ]
            await asyncio.gather(*work)

        assert (await state.room("lab")).seats == 4
        assert len(await state.standings("lab")) == 4

    # --- rooms as a whole

    async def test_which_rooms_are_listed(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))
        await state.decide("hall", None, creates("hall"))
        await state.decide("kept", "u:ada", grants(RoomRole.ADMIN))

        assert sorted(await state.rooms()) == ["hall", "lab"]

    async def test_a_room_is_listed_no_more_when_it_is_empty(self, state: Any) -> None:
        await state.decide("lab", None, creates())
        await state.decide("lab", "u:ada", joins("c1"))
        await state.decide("lab", "u:ada", leaves("c1"))

        assert await state.rooms() == []
        assert await state.room("lab") is not None

    async def test_a_removed_room_gives_up_who_was_inside(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1"))
        await state.decide("lab", "u:eve", grants(RoomRole.ADMIN))

        seated = await state.remove_room("lab")

        assert {key: list(standing.seats) for key, standing in seated.items()} == {"u:ada": ["c1"]}
        assert await state.room("lab") is None
        assert await state.rooms() == []
        assert await state.decide("lab", "u:eve", looks) == (None, Standing())

    async def test_removing_an_unknown_room_says_so(self, state: Any) -> None:
        assert await state.remove_room("lab") is None

    async def test_a_removed_room_can_be_made_anew(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        await state.decide("lab", "u:ada", joins("c1", "n3"))
        await state.remove_room("lab")
        await state.decide("lab", "u:bob", joins("c2"))

        await advance(self.lease + 1)

        assert list(await state.standings("lab")) == ["u:bob"]
        assert (await state.room("lab")).seats == 1

    # --- presence

    async def test_who_appears_is_there(self, state: Any, other: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.appear("n2", "c2", "ada", NOW)

        states = await other.presence(["ada", "bob"], at(5))

        assert (states["ada"].online, states["ada"].connections) == (True, 2)
        assert (states["bob"].online, states["bob"].connections) == (False, 0)
        assert states["bob"].last_seen is None

    async def test_who_is_there_was_last_seen_now(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)

        assert (await state.presence(["ada"], at(5)))["ada"].last_seen == at(5)

    async def test_who_has_gone_was_last_seen_then(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.vanish("c1", "ada", at(3))

        found = (await state.presence(["ada"], at(5)))["ada"]

        assert (found.online, found.last_seen) == (False, at(3))

    async def test_vanishing_says_how_many_are_left(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.appear("n2", "c2", "ada", NOW)

        assert await state.vanish("c1", "ada", NOW) == 1
        assert await state.vanish("c1", "ada", NOW) == 1
        assert await state.vanish("c2", "ada", NOW) == 0
        assert await state.vanish("c2", "ada", NOW) == 0

    async def test_who_has_gone_may_linger(self, state: Any, other: Any, advance: Advance) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.appear("n1", "c2", "ada", NOW)
        await state.vanish("c1", "ada", NOW, self.lease)
        await state.vanish("c2", "ada", NOW, self.lease)
        await state.vanish("c3", "bob", NOW, self.lease)

        then = await other.presence(["ada", "bob"], NOW)
        await advance(self.lease)
        later = await other.presence(["ada"], NOW)

        assert (then["ada"].online, then["ada"].connections) == (True, 0)
        assert not then["bob"].online, "who was not there does not linger"
        assert not later["ada"].online

    async def test_who_is_back_lingers_no_more(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.vanish("c1", "ada", NOW, self.lease)
        await state.appear("n1", "c2", "ada", NOW)
        await state.vanish("c2", "ada", NOW)

        assert not (await state.presence(["ada"], NOW))["ada"].online

    async def test_appearing_again_changes_nothing(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.appear("n1", "c1", "ada", NOW)

        assert (await state.presence(["ada"], NOW))["ada"].connections == 1

    async def test_where_the_connections_are_oldest_first(self, state: Any) -> None:
        for number in (3, 1, 2):
            await state.appear(f"n{number % 2 + 1}", f"c{number}", "ada", NOW)

        found = await state.connections_of(["ada", "bob"])

        assert list(found) == ["ada"]
        assert list(found["ada"].items()) == [("c3", "n2"), ("c1", "n2"), ("c2", "n1")]

    async def test_nobody_asked_for_is_nobody_found(self, state: Any) -> None:
        assert await state.presence([], NOW) == {}
        assert await state.connections_of([]) == {}

    # --- typing

    async def test_who_types_does_so_until_then(self, state: Any, other: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.set_typing("ada", "lab", at(5), NOW)

        assert (await other.presence(["ada"], at(4)))["ada"].typing == {"lab": at(5)}
        assert (await other.presence(["ada"], at(5)))["ada"].typing == {}

    async def test_who_stops_types_no_longer(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.set_typing("ada", "lab", at(5), NOW)
        await state.set_typing("ada", "hall", at(5), NOW)

        await state.set_typing("ada", "lab", None, at(1))

        assert list((await state.presence(["ada"], at(1)))["ada"].typing) == ["hall"]

    async def test_the_newest_word_counts(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.set_typing("ada", "lab", at(50), NOW)
        await state.set_typing("ada", "lab", at(5), at(1))

        assert (await state.presence(["ada"], at(6)))["ada"].typing == {}

    async def test_who_has_gone_types_nowhere(self, state: Any) -> None:
        await state.appear("n1", "c1", "ada", NOW)
        await state.set_typing("ada", "lab", at(50), NOW)
        await state.vanish("c1", "ada", at(1))

        assert (await state.presence(["ada"], at(2)))["ada"].typing == {}

    # --- sessions

    async def test_a_session_is_found_once(self, state: Any, other: Any) -> None:
        await state.keep_sessions({"a": ("one", 60.0), "b": ("two", 60.0)})

        assert await other.take_session("a") == "one"
        assert await state.take_session("a") is None
        assert await state.take_session("b") == "two"
        assert await state.take_session("c") is None

    async def test_a_session_kept_again_is_the_newer_one(self, state: Any) -> None:
        await state.keep_sessions({"a": ("one", 60.0)})
        await state.keep_sessions({"a": ("two", 60.0)})

        assert await state.take_session("a") == "two"

    async def test_a_session_is_kept_for_its_time(self, state: Any, advance: Advance) -> None:
        await state.keep_sessions({"a": ("one", self.lease), "b": ("two", self.lease * 10)})

        await advance(self.lease)
        await state.keep_sessions({"c": ("three", self.lease)})

        assert await state.take_session("a") is None
        assert await state.take_session("b") == "two"

    # --- leases

    async def test_renewing_says_who_is_alive(self, connect: Connect, advance: Advance) -> None:
        async with opened(connect()) as one, opened(connect()) as two:
            assert await one.renew("n1", self.lease) == ["n1"]
            assert sorted(await two.renew("n2", self.lease * 3)) == ["n1", "n2"]

            await advance(self.lease + 1)

            assert await two.renew("n2", self.lease) == ["n2"]

    async def test_a_lease_counts_from_the_last_renewal(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        await state.decide("lab", "u:ada", joins("c1", "n3"))
        await advance(self.lease * 0.6)
        await state.renew("n3", self.lease)

        await advance(self.lease * 0.6)

        assert list(await state.standings("lab")) == ["u:ada"]
        assert "n3" in await state.renew("n1", 600.0)

    async def test_what_a_lapsed_node_owned_is_gone(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        await state.decide("lab", "u:ada", joins("c1", "n3"))
        await state.appear("n3", "c1", "ada", NOW)
        await state.set_typing("ada", "lab", at(10**6), NOW)

        await advance(self.lease + 1)

        assert await state.room("lab") is None
        assert await state.rooms() == []
        assert await state.connections_of(["ada"]) == {}
        found = (await state.presence(["ada"], at(60)))["ada"]
        assert (found.online, found.connections, found.typing) == (False, 0, {})

    async def test_what_the_others_own_stays(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        for node, conn_id in (("n1", "c1"), ("n3", "c3")):
            await state.decide("lab", "u:ada", joins(conn_id, node))
            await state.appear(node, conn_id, "ada", NOW)

        await advance(self.lease + 1)

        assert (await state.room("lab")).seats == 1
        assert list((await state.standings("lab"))["u:ada"].seats) == ["c1"]
        assert await state.connections_of(["ada"]) == {"ada": {"c1": "n1"}}

    async def test_what_nobody_owns_stays(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        await state.decide("lab", "u:ada", grants(RoomRole.ADMIN))
        await state.decide("lab", "u:ada", joins("c1", "n3"))

        await advance(self.lease + 1)

        room, ada = await state.decide("lab", "u:ada", looks)
        assert room.seats == 0
        assert (ada.role, ada.seats) == (RoomRole.ADMIN, {})

    async def test_a_lapsed_nodes_seats_are_free(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        await state.decide("lab", None, creates(capacity=1))
        await state.decide("lab", "u:ada", joins("c1", "n3"))
        with pytest.raises(Refused):
            await state.decide("lab", "u:bob", joins("c2"))

        await advance(self.lease + 1)

        assert await state.decide("lab", "u:bob", joins("c2")) == 1

    async def test_all_that_a_lapsed_node_owned_is_gone(self, state: Any, advance: Advance) -> None:
        """Also a connection that is registered for two users, after a change of its user."""
        await state.renew("n3", self.lease)
        for user in ("ada", "eve"):
            await state.decide("lab", f"u:{user}", joins("c1", "n3"))
            await state.appear("n3", "c1", user, NOW)

        await advance(self.lease + 1)

        assert await state.room("lab") is None
        assert await state.standings("lab") == {}
        assert await state.connections_of(["ada", "eve"]) == {}

    async def test_what_a_node_owns_can_be_asked_for(self, state: Any, other: Any) -> None:
        """Page by page, in the order of the connections; only for stores with ``owned``."""
        if not has_methods_of(other, KnowsOwned):
            return
        for number in (3, 1, 2):
            await state.appear("n1", f"c{number}", "ada", NOW)
        await state.appear("n1", "c1", "eve", NOW)
        await state.appear("n2", "c9", "bob", NOW)
        await state.decide("lab", "u:ada", joins("c2"))
        await state.decide("hall", "u:eve", joins("c2"))
        await state.decide("lab", "c:c4", joins("c4"))
        await state.decide("lab", "u:bob", joins("c9", "n2"))

        first = await other.owned("n1", "", 2)
        rest = await other.owned("n1", "c2", 5)

        assert [(o.conn_id, set(o.users), set(o.seats)) for o in (*first, *rest)] == [
            ("c1", {"ada", "eve"}, set()),
            ("c2", {"ada"}, {("lab", "u:ada"), ("hall", "u:eve")}),
            ("c3", {"ada"}, set()),
            ("c4", set(), {("lab", "c:c4")}),
        ]
        assert await other.owned("n1", "c4", 5) == await other.owned("n8", "", 5) == []

    async def test_what_a_node_owns_no_longer_is_not_named(
        self, state: Any, advance: Advance
    ) -> None:
        if not has_methods_of(state, KnowsOwned):
            return
        await state.renew("n3", self.lease)
        await state.appear("n3", "c3", "eve", NOW)
        await state.appear("n1", "c1", "ada", NOW)
        await state.decide("lab", "u:ada", joins("c1"))
        await state.decide("hall", "u:ada", joins("c1"))
        await state.decide("lab", "u:ada", leaves("c1"))
        await state.remove_room("hall")
        await state.vanish("c1", "ada", NOW)

        await advance(self.lease + 1)

        assert await state.owned("n1", "", 5) == await state.owned("n3", "", 5) == []

    async def test_a_node_that_comes_back_begins_anew(self, state: Any, advance: Advance) -> None:
        await state.renew("n3", self.lease)
        await state.appear("n3", "c1", "ada", NOW)
        await advance(self.lease + 1)

        assert await state.connections_of(["ada"]) == {}
        assert "n3" in await state.renew("n3", self.lease)
        assert await state.connections_of(["ada"]) == {}
        await state.appear("n3", "c1", "ada", NOW)
        assert await state.connections_of(["ada"]) == {"ada": {"c1": "n3"}}

    async def test_a_node_that_ends_in_order_is_out_at_once(self, state: Any) -> None:
        await state.decide("lab", "u:ada", joins("c1", "n1"))
        await state.decide("lab", "u:ada", joins("c2", "n2"))
        await state.appear("n1", "c1", "ada", NOW)

        await state.release("n1", at(7))

        assert await state.renew("n2", 600.0) == ["n2"]
        assert list((await state.standings("lab"))["u:ada"].seats) == ["c2"]
        found = (await state.presence(["ada"], at(9)))["ada"]
        assert (found.online, found.last_seen) == (False, at(7))

    async def test_releasing_a_node_that_owns_nothing_changes_nothing(self, state: Any) -> None:
        await state.release("n9", NOW)

        assert sorted(await state.renew("n1", 600.0)) == ["n1", "n2"]
