"""Rooms against a model: whatever happens in whatever order, the rules hold.

The model is written from api.md alone and keeps what it knows in plain sets and
numbers. What drives the real rooms is what a store does: it keeps the room and one
standing per user, drops what is blank and forgets a room that does not last.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eyewall.domain.errors import JoinForbidden, RoomExists, RoomFull
from eyewall.domain.room import (
    JoinOptions,
    LeaveReason,
    Room,
    RoomOptions,
    RoomPolicy,
    RoomRole,
    Standing,
)

GRACE = 120
USERS = ("ada", "bob", "eve")
USER = st.sampled_from(USERS)
CONN = st.sampled_from([f"{user}-{n}" for user in USERS for n in (1, 2)])
OPTIONS = st.builds(
    lambda access, **others: RoomOptions(policy=access[0], allowed_roles=access[1], **others),
    access=st.sampled_from([*((policy, ()) for policy in RoomPolicy), ("private", ("staff",))]),
    capacity=st.sampled_from([None, 1, 2, 3]),
    auto_cleanup=st.booleans(),
)
STAFF = {"ada"}
FOREVER = 10**9


def user_of(conn):
    return conn.partition("-")[0]


@dataclass
class Model:
    """A room as the specification tells it. Times are seconds since the start."""

    options: RoomOptions = field(default_factory=RoomOptions)
    created: bool = False
    touched: bool = False
    joined_once: bool = False
    inside: set = field(default_factory=set)
    banned_until: dict = field(default_factory=dict)
    invites: dict = field(default_factory=dict)
    """Until when each is good."""
    granted: dict = field(default_factory=dict)

    def of(self, user):
        return {conn for conn in self.inside if user_of(conn) == user}

    def may_join(self, conn, force, now):
        user = user_of(conn)
        if conn in self.inside:
            return True
        if now < self.banned_until.get(user, 0):
            return JoinForbidden
        if self.options.capacity is not None and len(self.inside) >= self.options.capacity:
            return RoomFull
        if force or self.options.policy is RoomPolicy.PUBLIC:
            return True
        if self.options.policy is RoomPolicy.PRIVATE:
            allowed = user in STAFF and "staff" in self.options.allowed_roles
        else:
            allowed = now < self.invites.get(user, 0)
        return True if allowed else JoinForbidden

    def drop_invite(self, user):
        self.invites.pop(user, None)

    @property
    def there(self):
        return bool(self.inside) or self.created or self.touched

    @property
    def listed(self):
        if self.inside:
            return True
        return self.created and (not self.joined_once or not self.options.auto_cleanup)


class RoomMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.seconds = 0
        self.room = None
        self.standings = {}
        self.model = Model()

    # --- what a store does

    @property
    def now(self):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def decide(self, user, act):
        room = self.room or Room("lab", RoomOptions(), self.now)
        standing = self.standings.get(user, Standing())
        result = act(room, standing)
        if standing.blank:
            self.standings.pop(user, None)
        else:
            self.standings[user] = standing
        self.keep(room)
        return result

    def keep(self, room):
        self.room = room if room.seats or room.lasting else None
        if self.room is None:
            self.standings.clear()
        if not self.model.there:
            self.model = Model()

    # --- what may happen

    @rule(conn=CONN, force=st.booleans())
    def join(self, conn, force):
        user = user_of(conn)
        expected = self.model.may_join(conn, force, self.seconds)
        roles = frozenset({"staff"} if user in STAFF else ())

        def act(room, standing):
            options = JoinOptions(force=force)
            return room.admit(standing, conn, "n1", roles=roles, options=options, now=self.now)

        try:
            self.decide(user, act)
            happened = True
        except (JoinForbidden, RoomFull) as error:
            happened = type(error)
        assert happened is expected
        if happened is True and conn not in self.model.inside:
            assert self.room.seats <= (self.room.options.capacity or FOREVER)
            self.model.inside.add(conn)
            self.model.joined_once = True
            if self.seconds < self.model.invites.get(user, 0):
                self.model.invites[user] = FOREVER
            else:
                self.model.drop_invite(user)

    def _out(self, user, conns, reason):
        def act(room, standing):
            grace = timedelta(seconds=GRACE)
            return room.release(standing, conns, reason, now=self.now, grace=grace)

        gone = self.decide(user, act) if self.room else []
        expected = self.model.inside & set(conns)
        assert {conn for conn, _ in gone} == expected
        self.model.inside -= expected
        if expected and not self.model.of(user) and user in self.model.invites:
            if reason is LeaveReason.DISCONNECTED:
                self.model.invites[user] = self.seconds + GRACE
            else:
                self.model.drop_invite(user)
        elif reason is LeaveReason.KICKED and self.model.invites.get(user, FOREVER) < FOREVER:
            self.model.drop_invite(user)
        if not self.model.there:
            self.model = Model()

    @rule(conn=CONN)
    def leave(self, conn):
        self._out(user_of(conn), [conn], LeaveReason.LEFT)

    @rule(conn=CONN)
    def disconnect(self, conn):
        self._out(user_of(conn), [conn], LeaveReason.DISCONNECTED)

    @rule(user=USER)
    def kick(self, user):
        self._out(user, [f"{user}-1", f"{user}-2"], LeaveReason.KICKED)

    @rule(user=USER, seconds=st.sampled_from([None, 30, 300]))
    def ban(self, user, seconds):
        self.model.inside -= self.model.of(user)
        self.model.drop_invite(user)
        self.model.banned_until[user] = FOREVER if seconds is None else self.seconds + seconds
        self.model.touched = True
        duration = None if seconds is None else timedelta(seconds=seconds)
        self.decide(user, lambda room, s: room.ban(s, now=self.now, duration=duration))

    @rule(user=USER)
    def unban(self, user):
        self.model.banned_until.pop(user, None)
        if self.room:
            self.decide(user, lambda room, standing: room.unban(standing))

    @rule(user=USER)
    def invite(self, user):
        self.model.invites[user] = FOREVER
        self.model.touched = True
        self.decide(user, lambda room, standing: room.invite(standing))

    @rule(user=USER)
    def revoke(self, user):
        self.model.drop_invite(user)
        if self.room:
            self.decide(user, lambda room, standing: room.revoke_invite(standing))

    @rule(user=USER, role=st.sampled_from(RoomRole))
    def set_role(self, user, role):
        self.model.granted[user] = role
        self.model.touched = True
        self.decide(user, lambda room, standing: room.grant(standing, role))

    @rule(options=OPTIONS)
    def create(self, options):
        clash = self.model.created and self.model.options != options
        room = self.room or Room("lab", options, self.now)
        try:
            room.create(options)
        except RoomExists:
            assert clash
            return
        assert not clash
        self.model.options = options
        self.model.created = True
        self.keep(room)

    @rule(options=OPTIONS)
    def update(self, options):
        if self.room is None:
            return
        changes = {"policy": options.policy, "allowed_roles": options.allowed_roles}
        self.room.change(changes)
        self.model.options = self.model.options.changed(changes)
        self.model.touched = True

    @rule()
    def delete(self):
        self.room = None
        self.standings.clear()
        self.model = Model()

    @rule(seconds=st.sampled_from([1, 29, 30, 119, 120, 1000]))
    def time_passes(self, seconds):
        self.seconds += seconds

    # --- what always holds

    @invariant()
    def the_room_is_there_exactly_when_it_should_be(self):
        assert (self.room is not None) == self.model.there

    @invariant()
    def the_same_connections_are_inside(self):
        seated = {conn for s in self.standings.values() for conn in s.seats}
        assert seated == self.model.inside

    @invariant()
    def the_count_of_seats_is_their_sum(self):
        if self.room is not None:
            assert self.room.seats == sum(len(s.seats) for s in self.standings.values())

    @invariant()
    def nobody_banned_is_seated(self):
        for standing in self.standings.values():
            assert not (standing.is_banned(self.now) and standing.seats)

    @invariant()
    def everybody_has_the_role_that_was_granted(self):
        for user, standing in self.standings.items():
            granted = self.model.granted.get(user)
            assert standing.role == granted
            assert {seat.role for seat in standing.seats.values()} <= {
                RoomRole.MEMBER if granted is None else granted
            }

    @invariant()
    def blank_things_are_gone(self):
        assert not any(standing.blank for standing in self.standings.values())

    @invariant()
    def it_is_listed_as_the_specification_says(self):
        assert (self.room is not None and self.room.listed) == self.model.listed


RoomMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRooms = RoomMachine.TestCase
