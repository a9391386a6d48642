"""The values that the API hands out about rooms."""

from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest

from eyewall.domain.membership import Member, Membership, RoomInfo
from eyewall.domain.room import RoomOptions, RoomRole

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_membership_has_its_fields_in_the_documented_order():
    membership = Membership("lab", "c1", RoomRole.MEMBER, 3, "e", 7)

    assert membership.room_id == "lab"
    assert membership.conn_id == "c1"
    assert membership.role is RoomRole.MEMBER
    assert membership.members == 3
    assert membership.epoch == "e"
    assert membership.offset == 7


def test_without_history_there_is_no_position():
    membership = Membership("lab", "c1", RoomRole.MEMBER, 3)

    assert membership.epoch is None
    assert membership.offset is None


def test_a_member_has_its_fields_in_the_documented_order():
    member = Member("ada", RoomRole.OWNER, 2, NOW)

    assert member.user_id == "ada"
    assert member.role is RoomRole.OWNER
    assert member.connections == 2
    assert member.joined_at == NOW


def test_a_rooms_info_has_its_fields_in_the_documented_order():
    info = RoomInfo("lab", RoomOptions(), 4, NOW, "e", 9)

    assert info.id == "lab"
    assert info.options == RoomOptions()
    assert info.members == 4
    assert info.created_at == NOW
    assert (info.epoch, info.offset) == ("e", 9)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Membership("lab", "c1", RoomRole.MEMBER, 3), "members"),
        (Member("ada", RoomRole.OWNER, 2, NOW), "role"),
        (RoomInfo("lab", RoomOptions(), 4, NOW), "options"),
    ],
    ids=["membership", "member", "info"],
)
def test_what_is_handed_out_does_not_change(value, field):
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, None)
