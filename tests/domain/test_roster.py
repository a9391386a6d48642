"""Which connections are here."""

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eyewall.domain.errors import Misuse
from eyewall.domain.identity import ConnMeta
from eyewall.domain.roster import Roster


def roster(**metas):
    made = Roster()
    for conn_id, meta in metas.items():
        made.add(conn_id, meta)
    return made


def meta(user=None, device=None, *tags):
    return ConnMeta(user_id=user, device_id=device, tags=tags)


def held(made):
    """What the indexes hold, to see that nothing stays behind."""
    return [made._metas, made._users._found, made._devices._found, made._tags._found]


def test_a_connection_is_found_by_all_that_is_known_of_it():
    made = roster(c1=meta("ada", "phone", "beta", "eu"))

    assert "c1" in made
    assert len(made) == 1
    assert made.of_user("ada") == ["c1"]
    assert made.of_device("phone") == ["c1"]
    assert made.of_tag("beta") == made.of_tag("eu") == ["c1"]


def test_who_is_not_here_is_not_found():
    made = roster(c1=meta("ada"))

    assert "c2" not in made
    assert made.of_user("bob") == made.of_device("x") == made.of_tag("x") == []


def test_an_anonymous_connection_counts_but_belongs_to_nobody():
    made = roster(c1=meta(), c2=meta())

    assert len(made) == 2
    assert made.users() == []
    assert made.user_count == 0


def test_connections_come_in_order_of_arrival():
    made = roster(c2=meta("ada", "d", "t"), c1=meta("ada", "d", "t"), c3=meta("ada", "d", "t"))

    assert made.of_user("ada") == made.of_device("d") == made.of_tag("t") == ["c2", "c1", "c3"]


def test_the_order_holds_when_one_in_the_middle_leaves():
    made = roster(**{f"c{i}": meta("ada") for i in range(4)})

    made.remove("c1")
    made.add("c1", meta("ada"))

    assert made.of_user("ada") == ["c0", "c2", "c3", "c1"]


def test_users_are_counted_once_however_many_connections_they_have():
    made = roster(c1=meta("ada"), c2=meta("bob"), c3=meta("ada"))

    assert made.users() == ["ada", "bob"]
    assert made.user_count == 2


def test_a_user_is_here_until_the_last_connection_leaves():
    made = roster(c1=meta("ada"), c2=meta("ada"))

    made.remove("c1")
    assert made.users() == ["ada"]
    assert made.of_user("ada") == ["c2"]

    made.remove("c2")
    assert made.users() == []
    assert made.user_count == 0


def test_removing_says_whether_it_was_here():
    made = roster(c1=meta("ada"))

    assert made.remove("c1") is True
    assert made.remove("c1") is False
    assert len(made) == 0


def test_a_connection_comes_once():
    """A second coming under the same id would leave the first in the indexes."""
    made = roster(c1=meta("ada"))

    with pytest.raises(Misuse, match="here already"):
        made.add("c1", meta("bob"))

    assert made.of_user("ada") == ["c1"]
    assert made.of_user("bob") == []


def test_a_change_moves_every_index():
    made = roster(c1=meta("ada", "phone", "a", "b"))

    made.change("c1", meta("bob", "tablet", "b", "c"))

    assert made.users() == ["bob"]
    assert made.of_user("bob") == made.of_device("tablet") == ["c1"]
    assert made.of_tag("b") == made.of_tag("c") == ["c1"]
    assert made.of_user("ada") == made.of_device("phone") == made.of_tag("a") == []
    assert len(made) == 1


def test_signing_in_later_is_a_change():
    made = roster(c1=meta())

    made.change("c1", meta("ada"))

    assert made.of_user("ada") == ["c1"]


def test_signing_out_is_a_change():
    made = roster(c1=meta("ada"))

    made.change("c1", meta())

    assert made.users() == []
    assert "c1" in made


def test_a_change_of_tags_keeps_the_place_among_the_users_connections():
    """Who came first decides who has to go when the user's limit is reached."""
    made = roster(c1=meta("ada"), c2=meta("ada"))

    made.change("c1", meta("ada", None, "muted"))

    assert made.of_user("ada") == ["c1", "c2"]


def test_whoever_changes_to_another_user_comes_last_there():
    made = roster(c1=meta("ada"), c2=meta("bob"))

    made.change("c1", meta("bob"))

    assert made.of_user("bob") == ["c2", "c1"]


def test_a_connection_that_has_gone_cannot_change():
    with pytest.raises(Misuse, match="not here"):
        roster().change("c1", meta("ada"))


def test_a_change_is_remembered_for_the_removal():
    made = roster(c1=meta("ada", "phone", "a"))
    made.change("c1", meta("bob", "tablet", "b"))

    made.remove("c1")

    assert held(made) == [{}, {}, {}, {}]


def test_what_is_returned_is_a_copy():
    """Whoever goes through it may remove connections on the way."""
    made = roster(c1=meta("ada", "d", "t"), c2=meta("ada", "d", "t"))

    for conn_id in made.of_user("ada"):
        made.remove(conn_id)

    assert len(made) == 0


def test_a_user_with_one_connection_costs_no_container():
    """Tens of thousands of them are the common case, also after a second device left."""
    made = roster(c1=meta("ada"), c2=meta("bob"), c3=meta("bob"))
    made.remove("c2")

    assert made._users._found == {"ada": "c1", "bob": "c3"}


keys = st.sampled_from([None, "x", "y"])
metas = st.builds(
    ConnMeta,
    user_id=keys,
    device_id=keys,
    tags=st.frozensets(st.sampled_from(["s", "t", "u"])),
)
conn_ids = st.sampled_from(["c1", "c2", "c3", "c4"])


class RosterAgainstAList(RuleBasedStateMachine):
    """The roster answers as a list of all connections would."""

    def __init__(self):
        super().__init__()
        self.roster = Roster()
        self.users, self.devices, self.tags = [], [], []  # (key, conn_id) by arrival
        self.metas = {}

    @staticmethod
    def pairs(conn_id, meta):
        return (
            [(meta.user_id, conn_id)] if meta.user_id else [],
            [(meta.device_id, conn_id)] if meta.device_id else [],
            [(tag, conn_id) for tag in meta.tags],
        )

    def become(self, conn_id, meta):
        wanted = self.pairs(conn_id, meta)
        for index, pairs in zip((self.users, self.devices, self.tags), wanted, strict=True):
            index[:] = [pair for pair in index if pair[1] != conn_id or pair in pairs]
            index += [pair for pair in pairs if pair not in index]

    @rule(conn_id=conn_ids, meta=metas)
    def add_or_change(self, conn_id, meta):
        (self.roster.change if conn_id in self.metas else self.roster.add)(conn_id, meta)
        self.metas[conn_id] = meta
        self.become(conn_id, meta)

    @rule(conn_id=conn_ids)
    def remove(self, conn_id):
        assert self.roster.remove(conn_id) == (conn_id in self.metas)
        self.metas.pop(conn_id, None)
        self.become(conn_id, ConnMeta())

    @rule(conn_id=conn_ids, tag=st.sampled_from(["s", "t"]))
    def tag(self, conn_id, tag):
        if conn_id in self.metas:
            self.add_or_change(conn_id, dataclasses.replace(self.metas[conn_id], tags=[tag]))

    @invariant()
    def agrees(self):
        assert len(self.roster) == len(self.metas)
        assert set(self.roster.users()) == {user for user, _ in self.users}
        assert self.roster.user_count == len(self.roster.users())
        for key in ("x", "y"):
            assert self.roster.of_user(key) == [c for k, c in self.users if k == key]
            assert self.roster.of_device(key) == [c for k, c in self.devices if k == key]
        for tag in ("s", "t", "u"):
            assert self.roster.of_tag(tag) == [c for k, c in self.tags if k == tag]

    def teardown(self):
        for conn_id in list(self.metas):
            self.roster.remove(conn_id)
        assert held(self.roster) == [{}, {}, {}, {}]


TestRosterAgainstAList = RosterAgainstAList.TestCase
TestRosterAgainstAList.settings = settings(deadline=None, max_examples=50, stateful_step_count=25)
