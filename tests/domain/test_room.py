"""Rooms: who may enter, in what role, and what stays (api.md, "Rooms" to "Roles")."""

from datetime import UTC, datetime, timedelta

import pytest

from eyewall.domain.errors import JoinForbidden, RoomExists, RoomFull
from eyewall.domain.room import (
    Ban,
    JoinOptions,
    LeaveReason,
    Room,
    RoomOptions,
    RoomPolicy,
    RoomRole,
    Standing,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=120)
FORCE = JoinOptions(force=True)


def later(seconds):
    return NOW + timedelta(seconds=seconds)


def make_room(**options):
    return Room("lab", RoomOptions(**options), NOW)


def join(room, standing, conn_id="c1", *, options=None, roles=(), now=NOW):
    return room.admit(standing, conn_id, "n1", roles=frozenset(roles), options=options, now=now)


def leave(room, standing, *conn_ids, reason=LeaveReason.LEFT, now=NOW, grace=GRACE):
    return room.release(standing, conn_ids or ("c1",), reason, now=now, grace=grace)


# --- options


def test_options_have_the_documented_defaults():
    options = RoomOptions()

    assert options.policy is RoomPolicy.PUBLIC
    assert options.capacity is None
    assert options.allowed_roles == frozenset()
    assert options.auto_cleanup is True
    assert options.history_size == 0
    assert options.history_ttl is None
    assert options.announce is False
    assert options.metadata == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "secret"},
        {"capacity": 0},
        {"capacity": -1},
        {"capacity": 1.5},
        {"capacity": True},
        {"allowed_roles": "admin"},
        {"history_size": -1},
        {"history_ttl": 0},
        {"history_ttl": -1},
        {"history_ttl": float("nan")},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_where_it_is_built(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "policy" not in wrong else "secret"):
        RoomOptions(**wrong)


def test_options_take_the_policy_by_its_name_and_roles_from_any_iterable():
    options = RoomOptions(policy="private", allowed_roles=["staff", "staff"])

    assert options.policy is RoomPolicy.PRIVATE
    assert options.allowed_roles == frozenset({"staff"})


def test_a_ttl_may_be_a_timedelta():
    assert RoomOptions(history_ttl=timedelta(minutes=1)).history_ttl == 60.0


def test_options_do_not_change_with_what_they_were_made_from():
    metadata = {"topic": "hub"}
    options = RoomOptions(metadata=metadata)

    metadata["topic"] = "other"

    assert options.metadata == {"topic": "hub"}
    with pytest.raises(TypeError):
        options.metadata["topic"] = "other"


def test_changed_options_keep_what_is_not_named():
    options = RoomOptions(capacity=3, announce=True).changed({"capacity": 5})

    assert options == RoomOptions(capacity=5, announce=True)


def test_an_unknown_option_can_not_be_changed():
    with pytest.raises(ValueError, match="colour"):
        RoomOptions().changed({"colour": "red"})


def test_a_role_of_an_unknown_number_is_refused():
    with pytest.raises(ValueError, match="7"):
        JoinOptions(role=7)


@pytest.mark.parametrize(
    ("role", "wire"),
    [
        (RoomRole.GUEST, "guest"),
        (RoomRole.MEMBER, "member"),
        (RoomRole.MODERATOR, "moderator"),
        (RoomRole.ADMIN, "admin"),
        (RoomRole.OWNER, "owner"),
    ],
)
def test_roles_have_names_on_the_wire_and_an_order(role, wire):
    assert role.wire == wire
    assert all(lower < role for lower in RoomRole if lower.value < role.value)


# --- joining


def test_who_joins_gets_a_seat_as_a_member():
    room, ada = make_room(), Standing()

    seat = join(room, ada)

    assert (seat.node, seat.role, seat.joined_at) == ("n1", RoomRole.MEMBER, NOW)
    assert room.seats == 1
    assert ada.seats == {"c1": seat}


def test_joining_again_changes_nothing():
    room, ada = make_room(capacity=1), Standing()
    seat = join(room, ada)

    again = join(room, ada, options=JoinOptions(role=RoomRole.OWNER), now=later(5))

    assert again is seat
    assert seat.role is RoomRole.MEMBER
    assert room.seats == 1


def test_capacity_counts_connections():
    room, ada = make_room(capacity=2), Standing()
    join(room, ada, "c1")
    join(room, ada, "c2")

    with pytest.raises(RoomFull):
        join(room, Standing(), "c3")


def test_force_does_not_make_room_in_a_full_one():
    room = make_room(capacity=1)
    join(room, Standing())

    with pytest.raises(RoomFull):
        join(room, Standing(), "c2", options=FORCE)


def test_somebody_may_come_when_somebody_has_left():
    room, ada = make_room(capacity=1), Standing()
    join(room, ada)
    leave(room, ada)

    assert join(room, Standing(), "c2")


def test_a_room_that_shrinks_keeps_who_is_inside():
    room, ada = make_room(), Standing()
    join(room, ada, "c1")
    join(room, ada, "c2")

    room.change({"capacity": 1})

    assert len(ada.seats) == 2
    with pytest.raises(RoomFull):
        join(room, Standing(), "c3")


def test_a_private_room_wants_one_of_its_roles():
    room = make_room(policy=RoomPolicy.PRIVATE, allowed_roles={"staff", "press"})

    assert join(room, Standing(), roles={"press", "other"})
    with pytest.raises(JoinForbidden):
        join(room, Standing(), "c2", roles={"other"})


def test_a_private_room_without_roles_lets_nobody_in_but_by_force():
    room = make_room(policy=RoomPolicy.PRIVATE)

    with pytest.raises(JoinForbidden):
        join(room, Standing(), roles={"staff"})

    assert join(room, Standing(), options=FORCE)


def test_a_refusal_leaves_no_trace():
    room, ada = make_room(policy=RoomPolicy.INVITE_ONLY), Standing()

    with pytest.raises(JoinForbidden):
        join(room, ada)

    assert ada == Standing()
    assert room == make_room(policy=RoomPolicy.INVITE_ONLY)


@pytest.mark.parametrize("policy", ["public", RoomPolicy.PUBLIC, "invite_only"])
def test_allowed_roles_that_would_restrict_nobody_are_refused(policy):
    """Where options are built and where they are changed, from either side."""
    with pytest.raises(ValueError, match=r"allowed_roles .* take policy=RoomPolicy.PRIVATE"):
        RoomOptions(policy=policy, allowed_roles=["staff"])
    private = RoomOptions(policy="private", allowed_roles=["staff"])
    with pytest.raises(ValueError, match="allowed_roles"):
        private.changed({"policy": policy})
    with pytest.raises(ValueError, match="allowed_roles"):
        RoomOptions(policy=policy).changed({"allowed_roles": ["staff"]})

    assert private.changed({"policy": policy, "allowed_roles": ()}) == RoomOptions(policy=policy)


@pytest.mark.parametrize("policy", list(RoomPolicy))
@pytest.mark.parametrize("force", [True, False])
def test_who_is_banned_gets_in_under_no_policy_and_not_by_force(policy, force):
    roles = {"staff"} if policy is RoomPolicy.PRIVATE else ()
    room, ada = make_room(policy=policy, allowed_roles=roles), Standing()
    room.ban(ada, now=NOW, duration=None)
    room.invite(ada)

    with pytest.raises(JoinForbidden):
        join(room, ada, roles={"staff"}, options=JoinOptions(force=force))


def test_a_ban_is_named_before_the_lack_of_space():
    """The banned are told so, also in a full room: coming back would not help."""
    room, ada = make_room(capacity=1), Standing()
    room.ban(ada, now=NOW, duration=None)
    join(room, Standing())

    with pytest.raises(JoinForbidden):
        join(room, ada, "c2")


# --- invites


def invited_room(**options):
    return make_room(policy=RoomPolicy.INVITE_ONLY, **options)


def test_who_is_invited_gets_in():
    room, ada = invited_room(), Standing()
    room.invite(ada)

    assert join(room, ada)


def test_a_full_room_does_not_use_up_an_invitation():
    """Being turned away for lack of space leaves the invitation valid."""
    room, ada, bob = invited_room(capacity=1), Standing(), Standing()
    room.invite(ada)
    room.invite(bob)
    join(room, ada)

    with pytest.raises(RoomFull):
        join(room, bob, "c2")

    leave(room, ada)
    assert join(room, bob, "c2")


def test_an_invite_is_good_for_all_devices_of_the_user():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada, "c1")

    assert join(room, ada, "c2")
    leave(room, ada, "c1")
    assert join(room, ada, "c3")


@pytest.mark.parametrize("reason", [LeaveReason.LEFT, LeaveReason.KICKED])
def test_an_invite_is_used_up_when_the_user_has_left_with_all_devices(reason):
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada, "c1")
    join(room, ada, "c2")

    leave(room, ada, "c1", "c2", reason=reason)

    with pytest.raises(JoinForbidden):
        join(room, ada)


def test_a_ban_takes_the_invite_too():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    room.ban(ada, now=NOW, duration=None)
    room.unban(ada)

    with pytest.raises(JoinForbidden):
        join(room, ada)


def test_an_invite_outlives_a_cut_for_its_grace():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)
    leave(room, ada, reason=LeaveReason.DISCONNECTED)

    assert join(room, ada, "c2", now=later(119.9))


def test_an_invite_does_not_outlive_a_cut_by_more():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)
    leave(room, ada, reason=LeaveReason.DISCONNECTED)

    with pytest.raises(JoinForbidden):
        join(room, ada, "c2", now=later(120))


def test_who_is_kicked_while_cut_off_needs_a_new_invite():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)
    leave(room, ada, reason=LeaveReason.DISCONNECTED)

    assert room.release(ada, [], LeaveReason.KICKED, now=later(1)) == []

    with pytest.raises(JoinForbidden):
        join(room, ada, "c2", now=later(2))


def test_a_kick_leaves_an_invite_that_nobody_has_used():
    room, ada = invited_room(), Standing()
    room.invite(ada)

    room.release(ada, [], LeaveReason.KICKED, now=NOW)

    assert join(room, ada)


def test_coming_back_stops_the_grace():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)
    leave(room, ada, reason=LeaveReason.DISCONNECTED)
    join(room, ada, "c2", now=later(60))

    assert join(room, ada, "c3", now=later(1000))


def test_a_cut_without_grace_uses_the_invite_up():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)

    leave(room, ada, reason=LeaveReason.DISCONNECTED, grace=timedelta(0))

    assert not ada.invited


def test_an_invite_that_has_run_out_does_not_come_back_by_force():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)
    leave(room, ada, reason=LeaveReason.DISCONNECTED)

    join(room, ada, "c2", options=FORCE, now=later(1000))

    with pytest.raises(JoinForbidden):
        join(room, ada, "c3", now=later(1001))


def test_an_invite_that_nobody_has_used_waits():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    leave(room, ada)  # was not there

    assert join(room, ada, now=later(10**6))


def test_inviting_again_after_a_cut_is_without_end():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)
    leave(room, ada, reason=LeaveReason.DISCONNECTED)

    room.invite(ada)

    assert join(room, ada, now=later(1000))


def test_an_invite_that_is_taken_back_lets_nobody_in():
    room, ada = invited_room(), Standing()
    room.invite(ada)

    room.revoke_invite(ada)

    with pytest.raises(JoinForbidden):
        join(room, ada)


def test_taking_an_invite_back_puts_nobody_out():
    room, ada = invited_room(), Standing()
    room.invite(ada)
    join(room, ada)

    room.revoke_invite(ada)

    assert list(ada.seats) == ["c1"]


def test_who_is_invited_at_the_door_gets_in_and_so_do_the_other_devices():
    room, ada = invited_room(), Standing()

    join(room, ada, options=JoinOptions(invited_by="bob"))

    assert join(room, ada, "c2")
    assert room.kept


# --- roles


def test_a_granted_role_is_taken_on_at_the_next_join():
    room, ada = make_room(), Standing()
    room.grant(ada, RoomRole.ADMIN)

    assert join(room, ada).role is RoomRole.ADMIN


def test_a_granted_role_counts_at_once_for_who_is_inside():
    room, ada = make_room(), Standing()
    join(room, ada, "c1")
    join(room, ada, "c2")

    assert room.grant(ada, RoomRole.GUEST) == ["c1", "c2"]
    assert {seat.role for seat in ada.seats.values()} == {RoomRole.GUEST}


def test_a_role_that_the_join_names_is_this_seats():
    room, ada = make_room(), Standing()
    room.grant(ada, RoomRole.ADMIN)

    seat = join(room, ada, options=JoinOptions(role=RoomRole.GUEST))

    assert seat.role is RoomRole.GUEST
    assert ada.role is RoomRole.ADMIN


def test_a_role_stays_when_its_user_leaves():
    room, ada = make_room(), Standing()
    room.grant(ada, RoomRole.OWNER)
    join(room, ada)
    leave(room, ada)

    assert join(room, ada).role is RoomRole.OWNER


def test_a_users_role_is_the_highest_of_its_seats():
    room, ada = make_room(), Standing()
    join(room, ada, "c1", options=JoinOptions(role=RoomRole.GUEST))
    join(room, ada, "c2", options=JoinOptions(role=RoomRole.MODERATOR))

    assert ada.highest_role() is RoomRole.MODERATOR


def test_who_has_no_seat_has_the_granted_role_or_none():
    assert Standing().highest_role() is RoomRole.MEMBER
    assert Standing(role=RoomRole.GUEST).highest_role() is RoomRole.GUEST


# --- leaving and bans


def test_leaving_gives_the_seats_back():
    room, ada = make_room(), Standing()
    seat = join(room, ada, "c1")
    join(room, ada, "c2")

    assert leave(room, ada, "c1") == [("c1", seat)]
    assert room.seats == 1
    assert list(ada.seats) == ["c2"]


def test_leaving_what_one_is_not_in_changes_nothing():
    room, ada = make_room(), Standing()
    join(room, ada)

    assert leave(room, ada, "other") == []
    assert room.seats == 1


def test_a_ban_removes_the_users_connections():
    room, ada = make_room(), Standing()
    join(room, ada, "c1")
    join(room, ada, "c2")

    gone = room.ban(ada, now=NOW, duration=None)

    assert [conn_id for conn_id, _ in gone] == ["c1", "c2"]
    assert room.seats == 0
    assert ada.banned is Ban.FOREVER


def test_a_ban_with_a_duration_ends_at_it():
    room, ada = make_room(), Standing()
    room.ban(ada, now=NOW, duration=timedelta(seconds=60))

    with pytest.raises(JoinForbidden):
        join(room, ada, now=later(59.9))
    assert join(room, ada, now=later(60))
    assert ada.banned is None


def test_the_newest_ban_counts():
    room, ada = make_room(), Standing()
    room.ban(ada, now=NOW, duration=None)
    room.ban(ada, now=NOW, duration=timedelta(seconds=60))

    assert not ada.is_banned(later(60))


def test_unban_lets_in_again():
    room, ada = make_room(), Standing()
    room.ban(ada, now=NOW, duration=None)

    room.unban(ada)

    assert join(room, ada)


# --- what stays


def test_a_room_that_arose_by_joining_is_gone_with_its_members():
    room, ada = make_room(), Standing()
    join(room, ada)
    leave(room, ada)

    assert not room.lasting
    assert not room.listed
    assert ada.blank


@pytest.mark.parametrize(
    "act",
    [
        lambda room, ada: room.ban(ada, now=NOW, duration=None),
        lambda room, ada: room.invite(ada),
        lambda room, ada: room.grant(ada, RoomRole.ADMIN),
        lambda room, ada: room.change({"policy": RoomPolicy.PRIVATE}),
        lambda room, ada: room.create(RoomOptions()),
    ],
    ids=["ban", "invite", "role", "change", "create"],
)
def test_a_room_stays_that_somebody_has_decided_about(act):
    """A private room never comes back public, and the banned stay banned."""
    room, ada = make_room(), Standing()

    act(room, ada)

    assert room.lasting


def test_unban_and_revoke_decide_nothing_that_has_to_stay():
    room, ada = make_room(), Standing()

    room.unban(ada)
    room.revoke_invite(ada)

    assert not room.lasting
    assert ada.blank


@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("auto_cleanup", [True, False])
def test_which_rooms_are_listed(created, auto_cleanup):
    """With members; created and not joined yet; created and not cleaned up."""
    room, ada = make_room(auto_cleanup=auto_cleanup), Standing()
    if created:
        room.create(room.options)

    before = room.listed
    join(room, ada)
    during = room.listed
    leave(room, ada)
    after = room.listed

    assert (before, during, after) == (created, True, created and not auto_cleanup)


def test_a_room_that_is_only_kept_is_not_listed():
    room = make_room(auto_cleanup=False)
    room.invite(Standing())

    assert not room.listed


# --- creating


def test_create_takes_a_room_over_that_arose_by_joining():
    room, ada = make_room(), Standing()
    join(room, ada)

    room.create(RoomOptions(capacity=1))

    assert room.options.capacity == 1
    assert room.seats == 1
    assert room.lasting


def test_creating_twice_with_equal_options_changes_nothing():
    room = make_room()
    room.create(RoomOptions(capacity=2, metadata={"a": 1}))

    room.create(RoomOptions(capacity=2, metadata={"a": 1}))

    assert room.options.capacity == 2


def test_creating_twice_with_other_options_is_refused():
    room = make_room()
    room.create(RoomOptions(capacity=2))

    with pytest.raises(RoomExists):
        room.create(RoomOptions(capacity=3))

    assert room.options.capacity == 2


# --- standings


def test_a_copy_of_a_standing_shares_nothing_that_changes():
    room, ada = make_room(), Standing(role=RoomRole.ADMIN, invited=True, invite_until=NOW)
    join(room, ada)
    copy = ada.copy()
    assert copy == ada

    copy.seats["c1"].role = RoomRole.GUEST
    copy.seats["c2"] = copy.seats["c1"]

    assert list(ada.seats) == ["c1"]
    assert ada.seats["c1"].role is RoomRole.ADMIN


@pytest.mark.parametrize(
    ("standing", "blank"),
    [
        (Standing(), True),
        (Standing(invite_until=NOW), True),
        (Standing(role=RoomRole.GUEST), False),
        (Standing(banned=Ban.FOREVER), False),
        (Standing(banned=NOW), False),
        (Standing(invited=True), False),
    ],
)
def test_what_of_a_standing_is_worth_keeping(standing, blank):
    """GUEST counts as 0, and is a role all the same."""
    assert standing.blank is blank
