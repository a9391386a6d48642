"""Who gets which frames, without a socket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eyewall.adapters.web.sockets.batch import CLOSE_MARKER, GroupSnapshot, merge_writes
from tests.adapters.web.support import raw


class Wire:
    name = "json"


JSON, OTHER = Wire(), Wire()


class Spot:
    """A target that only collects."""

    def __init__(self, wire=JSON):
        self.wire = wire
        self.pending = None


def delivered(groups):
    """Return what each link gets; each link must be in one group only."""
    got = {}
    for links, wire, frames, *_ in groups:
        for link in links:
            assert link not in got
            assert link.wire is wire
            got[link] = [frame.payload.decode() for frame in frames]
    return got


def test_members_of_one_room_share_a_parcel():
    members = [Spot() for _ in range(5)]
    a, b = raw("a"), raw("b")

    groups = merge_writes({GroupSnapshot(members): [(1, a), (2, b)]}, [])

    assert len(groups) == 1
    assert set(groups[0].links) == set(members)
    assert groups[0].frames == [a, b]


def test_members_of_the_same_two_rooms_share_a_parcel_in_the_order_of_sending():
    both, first, second = [Spot() for _ in range(3)], Spot(), Spot()
    one, two = GroupSnapshot([*both, first]), GroupSnapshot([*both, second])

    groups = merge_writes({one: [(1, raw("a")), (3, raw("c"))], two: [(2, raw("b"))]}, [])

    got = delivered(groups)
    assert len(groups) == 3
    assert all(got[link] == ["a", "b", "c"] for link in both)
    assert (got[first], got[second]) == (["a", "c"], ["b"])


def test_own_frames_stand_between_the_rooms_by_their_numbers():
    link, other = Spot(), Spot()
    link.pending = [(2, raw("own"))]

    got = delivered(
        merge_writes({GroupSnapshot([link, other]): [(1, raw("a")), (3, raw("b"))]}, [link])
    )

    assert got == {link: ["a", "own", "b"], other: ["a", "b"]}
    assert link.pending is None


def test_a_hole_takes_one_frame_out_for_one_link():
    link, other = Spot(), Spot()
    link.pending = [(2, None)]

    got = delivered(
        merge_writes({GroupSnapshot([link, other]): [(1, raw("a")), (2, raw("b"))]}, [link])
    )

    assert got == {link: ["a"], other: ["a", "b"]}


def test_nothing_goes_out_after_the_last():
    link = Spot()
    link.pending = [(1, raw("a")), (2, CLOSE_MARKER), (4, raw("late"))]

    (group,) = [
        p for p in merge_writes({GroupSnapshot([link]): [(3, raw("room"))]}, [link]) if p.links
    ]

    assert [frame.payload for frame in group.frames] == [b"a"]
    assert group.last
    assert [frame.payload for frame in group.late] == [b"room", b"late"]


def test_a_link_that_has_ended_gets_nothing_of_its_own():
    assert merge_writes({}, [Spot()]) == []


def test_links_of_different_wires_never_share_a_parcel():
    links = [Spot(JSON), Spot(OTHER), Spot(JSON), Spot(OTHER)]
    one, two = GroupSnapshot(links), GroupSnapshot(links[:2])

    got = delivered(merge_writes({one: [(1, raw("a"))], two: [(2, raw("b"))]}, []))

    assert got == dict(zip(links, [["a", "b"], ["a", "b"], ["a"], ["a"]], strict=True))


actions = st.lists(
    st.tuples(
        st.integers(0, 6),  # whom: a link (0 to 3) or a room (4 to 6)
        st.sets(st.integers(0, 3)),  # whom to skip
    ),
    max_size=25,
)


@given(st.lists(st.sets(st.integers(0, 3)), min_size=3, max_size=3), actions)
def test_every_link_gets_everything_that_was_for_it_in_the_order_of_sending(rooms, sent):
    links = [Spot() for _ in range(4)]
    snapshots = [GroupSnapshot([links[i] for i in members]) for members in rooms]
    runs, direct = {}, []
    expected = {link: [] for link in links}

    def own(link, number, frame):
        if link.pending is None:
            link.pending = []
            direct.append(link)
        link.pending.append((number, frame))

    for number, (whom, skip) in enumerate(sent, 1):
        if whom < 4:
            own(links[whom], number, raw(str(number)))
            expected[links[whom]].append(str(number))
            continue
        snapshot = snapshots[whom - 4]
        for i in skip & rooms[whom - 4]:
            own(links[i], number, None)
        runs.setdefault(snapshot, []).append((number, raw(str(number))))
        for i in rooms[whom - 4] - skip:
            expected[links[i]].append(str(number))

    got = delivered(merge_writes(runs, direct))

    assert {link: got.get(link, []) for link in links} == expected
