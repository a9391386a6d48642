"""Who is who."""

import dataclasses
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain.identity import ConnMeta, Where, is_printable, name

relaxed = settings(deadline=None)


# --- names


NAMES = [
    "a",
    "Ada Lovelace",
    "жук",
    "room:1/2",
    "x" * 200,
    "می\u200cخواهم",  # Persian, with a joiner that keeps two letters apart
    "क\u094d\u200dष",  # Hindi, with one that draws them together
    "山田\u3000太郎",
    "Jean\u00a0Paul",
    "👩\u200d💻",
    "\U0001fae9",  # an emoji of 2024
    "\U0001faff",  # a place for one that is still to come
    "\u200eabc\u200f",  # marks, which turn no other text
    "cafe\u0301",  # not composed, and left so
    "\u200b",
    "\ufeff",
    "\ue000",
]


@pytest.mark.parametrize("value", NAMES)
def test_a_name_is_1_to_200_printable_characters(value):
    assert name(value, "user_id") == value


@pytest.mark.parametrize(
    "wrong", ["", "x" * 201, "a\nb", "a\0b", "\ud800", "a\u2028b", None, 7, b"a"]
)
def test_what_can_not_be_printed_or_kept_is_no_name(wrong):
    with pytest.raises(ValueError, match=r"^room_id must be 1 to 200 printable characters"):
        name(wrong, "room_id")


def test_what_is_refused_is_a_fixed_table():
    """Whatever Unicode this Python knows."""
    refused = [
        *range(0x20),
        *range(0x7F, 0xA0),
        0x2028,
        0x2029,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ]

    assert [c for c in range(0x110000) if not is_printable(chr(c))] == refused
    assert [c for c in range(0x110000) if not is_printable(f"é{chr(c)}")] == refused


def test_a_bad_name_is_shown_cut_short():
    """What a client sent must not fill the log."""
    with pytest.raises(ValueError, match="user_id") as caught:
        name("x" * 100_000, "user_id")

    assert len(str(caught.value)) < 200


# --- what is known of a connection


def test_nothing_is_known_unless_told():
    meta = ConnMeta()

    assert meta.user_id is meta.device_id is meta.ip is meta.user_agent is meta.expires_at is None
    assert meta.roles == meta.tags == frozenset()
    assert meta.attributes == {}


@pytest.mark.parametrize("given_names", [["a", "b"], ("a", "b"), {"a", "b"}, iter(["a", "b", "a"])])
def test_roles_and_tags_are_any_strings_and_become_sets(given_names):
    names = list(given_names)
    meta = ConnMeta(roles=iter(names), tags=names)

    assert meta.roles == meta.tags == frozenset({"a", "b"})
    assert type(meta.roles) is type(meta.tags) is frozenset


@pytest.mark.parametrize("what", ["roles", "tags"])
def test_one_string_is_not_several(what):
    """``roles="admin"`` would else grant the roles a, d, m, i and n."""
    with pytest.raises(ValueError, match=f"{what} must be several strings"):
        ConnMeta(**{what: "admin"})


@pytest.mark.parametrize("what", ["roles", "tags"])
def test_roles_and_tags_are_strings(what):
    with pytest.raises(ValueError, match=f"{what} must be strings"):
        ConnMeta(**{what: ["a", 1]})


@pytest.mark.parametrize("wrong", ["", "a\n", "x" * 201, 7])
def test_a_user_id_is_a_name(wrong):
    with pytest.raises(ValueError, match="user_id"):
        ConnMeta(user_id=wrong)


def test_the_end_of_the_credentials_is_aware():
    assert ConnMeta(expires_at=datetime(2030, 1, 1, tzinfo=UTC)).expires_at.year == 2030

    with pytest.raises(ValueError, match="expires_at must be an aware datetime"):
        ConnMeta(expires_at=datetime(2030, 1, 1))  # noqa: DTZ001


def test_attributes_are_a_copy_that_does_not_change():
    attributes = {"plan": "free"}
    meta = ConnMeta(attributes=attributes)

    attributes["plan"] = "gold"

    assert meta.attributes == {"plan": "free"}
    with pytest.raises(TypeError):
        meta.attributes["plan"] = "gold"


def test_a_meta_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConnMeta().user_id = "ada"


def test_a_changed_copy_keeps_what_is_not_named():
    meta = ConnMeta(user_id="ada", roles=["admin"], attributes={"plan": "free"})

    changed = dataclasses.replace(meta, tags=["beta"])

    assert changed == ConnMeta(
        user_id="ada", roles=["admin"], attributes={"plan": "free"}, tags=["beta"]
    )
    assert meta.tags == frozenset()


# --- who is meant

ADA = ConnMeta(
    user_id="ada", roles=["admin", "user"], tags=["eu", "beta"], attributes={"plan": "free"}
)


def test_whoever_asks_for_nothing_means_everybody():
    assert Where()(ADA)
    assert Where()(ConnMeta())


@pytest.mark.parametrize(
    ("tags", "fits"), [(["eu"], True), (["eu", "beta"], True), (["eu", "us"], False)]
)
def test_all_tags_are_asked_for(tags, fits):
    assert Where(tags=tags)(ADA) is fits


@pytest.mark.parametrize(
    ("roles", "fits"), [(["admin"], True), (["admin", "guest"], True), (["guest"], False)]
)
def test_one_of_the_roles_will_do(roles, fits):
    assert Where(roles=roles)(ADA) is fits


@pytest.mark.parametrize(
    ("user_ids", "fits"), [(["ada"], True), (["bob", "ada"], True), (["bob"], False)]
)
def test_one_of_the_users_will_do(user_ids, fits):
    assert Where(user_ids=user_ids)(ADA) is fits


def test_nobody_is_not_one_of_the_users():
    assert not Where(user_ids=["ada"])(ConnMeta())


@pytest.mark.parametrize(
    ("attributes", "fits"),
    [
        ({"plan": "free"}, True),
        ({"plan": "gold"}, False),
        ({"plan": "free", "age": 3}, False),
        ({"age": None}, False),
    ],
)
def test_every_attribute_is_there_and_equal(attributes, fits):
    """An attribute that is not there is not None."""
    assert Where(attributes=attributes)(ADA) is fits


@pytest.mark.parametrize(
    "miss", [{"tags": ["x"]}, {"roles": ["x"]}, {"user_ids": ["x"]}, {"attributes": {"x": 1}}]
)
def test_everything_that_is_asked_for_must_fit(miss):
    fitting = {
        "tags": ["eu"],
        "roles": ["admin"],
        "user_ids": ["ada"],
        "attributes": {"plan": "free"},
    }
    assert Where(**fitting)(ADA)

    assert not Where(**(fitting | miss))(ADA)


@pytest.mark.parametrize("what", ["tags", "roles", "user_ids"])
def test_a_selection_takes_several_strings_not_one(what):
    with pytest.raises(ValueError, match=f"{what} must be several strings"):
        Where(**{what: "ada"})


words = st.frozensets(st.sampled_from("abc"))


@relaxed
@given(words, words, words, words)
def test_asking_for_more_tags_and_fewer_roles_never_finds_more(tags, roles, has_tags, has_roles):
    meta = ConnMeta(tags=has_tags, roles=has_roles)
    if not Where(tags=tags, roles=roles)(meta):
        return

    assert tags <= has_tags
    assert not roles or roles & has_roles
    assert Where(tags=frozenset(list(tags)[:1]), roles=roles | {"c"} if roles else roles)(meta)


@relaxed
@given(st.text(max_size=220))
def test_a_name_is_taken_as_it_is_or_not_at_all(value):
    try:
        assert name(value, "user_id") == value
    except ValueError:
        assert not value or len(value) > 200 or not is_printable(value)
