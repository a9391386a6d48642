"""Which handler a message goes to."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain import routing
from eyewall.domain.routing import RouteTable
from eyewall.domain.topic import Pattern

relaxed = settings(deadline=None)


def table(*routes):
    """A table whose handlers are named ``pattern`` or ``pattern@version``."""
    made = RouteTable()
    for route in routes:
        pattern, _, version = route.partition("@")
        made.add(pattern, route, version or None, system=pattern.startswith("system:"))
    return made


def test_the_examples_hold():
    assert doctest.testmod(routing).failed == 0


def test_an_exact_topic_is_found():
    assert table("echo:ping").find("echo:ping", None) == "echo:ping"


def test_an_unknown_topic_is_not_found():
    assert table("echo:ping").find("echo:pong", None) is None
    assert table().find("echo:pong", "v1") is None


def test_an_exact_topic_beats_any_wildcard():
    routes = table("chat:*", "*", "chat:lobby")

    assert routes.find("chat:lobby", None) == "chat:lobby"


@pytest.mark.parametrize("order", [("chat:*", "chat:room:*"), ("chat:room:*", "chat:*")])
def test_among_wildcards_the_longest_prefix_wins(order):
    routes = table(*order)

    assert routes.find("chat:room:a", None) == "chat:room:*"
    assert routes.find("chat:room:a:b", None) == "chat:room:*"
    assert routes.find("chat:a", None) == "chat:*"
    assert routes.find("chat:room", None) == "chat:*"
    assert routes.find("chat", None) is None


def test_a_lone_star_is_the_last_resort():
    routes = table("*", "chat:*")

    assert routes.find("chat:a", None) == "chat:*"
    assert routes.find("chat", None) == "*"
    assert routes.find("other:a:b", None) == "*"


def test_a_lone_star_never_sees_the_servers_topics():
    routes = table("*")

    assert routes.find("system:join", None) is None
    assert routes.find("system", None) == "*"


def test_the_server_has_its_own_routes():
    routes = table("*", "system:join", "system:*")

    assert routes.find("system:join", None) == "system:join"
    assert routes.find("system:leave", None) == "system:*"


def test_an_application_cannot_take_a_topic_of_the_server():
    with pytest.raises(ValueError, match="belong to the server"):
        RouteTable().add("system:join", "mine")


def test_a_version_goes_to_its_own_handler():
    routes = table("chat:a", "chat:a@v1", "chat:a@v2")

    assert routes.find("chat:a", "v2") == "chat:a@v2"


def test_an_unknown_version_goes_to_the_unversioned_handler_of_the_same_pattern():
    routes = table("chat:a", "chat:a@v1", "chat:*@v3")

    assert routes.find("chat:a", "v3") == "chat:a"


def test_a_pattern_without_a_handler_for_the_version_passes_the_message_on():
    routes = table("chat:room:a@v1", "chat:room:*@v2", "chat:*@v3", "*")

    assert routes.find("chat:room:a", "v1") == "chat:room:a@v1"
    assert routes.find("chat:room:a", "v2") == "chat:room:*@v2"
    assert routes.find("chat:room:a", "v3") == "chat:*@v3"
    assert routes.find("chat:room:a", "v4") == "*"


def test_a_message_without_a_version_is_only_for_unversioned_handlers():
    routes = table("chat:a@v1", "chat:*@v1", "*@v1")

    assert routes.find("chat:a", None) is None


@pytest.mark.parametrize("pattern", ["chat:a", "chat:*", "*"])
def test_a_pattern_and_version_can_be_taken_once(pattern):
    routes = table(pattern, f"{pattern}@v1")

    with pytest.raises(ValueError, match="has a handler already"):
        routes.add(pattern, "again")
    with pytest.raises(ValueError, match="for version 'v1' already"):
        routes.add(pattern, "again", "v1")

    assert routes.find("chat:a", None) == pattern
    assert routes.find("chat:a", "v1") == f"{pattern}@v1"


def test_a_bad_pattern_leaves_no_trace():
    routes = table("chat:a")

    with pytest.raises(ValueError, match="whole last segment"):
        routes.add("chat*", "bad")

    assert routes.patterns() == ["chat:a"]


def test_a_star_in_a_topic_is_a_character_like_any_other():
    """A client that sends a pattern as its topic reaches nothing special."""
    routes = table("chat:*", "news:a")

    assert routes.find("chat:*", None) == "chat:*"
    assert routes.find("news:*", None) is None
    assert routes.find("*", None) is None


def test_a_prefix_is_not_a_topic_of_its_own():
    routes = table("chat:*", "a")

    assert routes.find("chat:", None) == "chat:*"
    assert routes.find("a:", None) is None


def test_a_first_segment_may_be_empty():
    """``:a`` is a legal topic, and ``:*`` the wildcard for it."""
    routes = table(":*", "*")

    assert routes.find(":a", None) == ":*"
    assert routes.find("a", None) == "*"


def test_a_route_applies_from_the_next_look_up_on():
    routes = table("*")
    assert routes.find("chat:room:a", None) == "*"

    routes.add("chat:room:*", "new")

    assert routes.find("chat:room:a", None) == "new"


def test_patterns_come_once_each_in_the_order_in_which_they_came():
    routes = table("chat:*", "echo:ping@v1", "echo:ping", "chat:*@v2", "*")

    assert routes.patterns() == ["chat:*", "echo:ping", "*"]


def test_a_topic_of_colons_is_looked_up_no_deeper_than_the_routes_go():
    """256 colons are a legal topic, and must not cost 256 look-ups."""
    routes = table("a:b:*", "*")
    looked = []

    class Counting(dict):
        def get(self, key, default=None):
            looked.append(key)
            return super().get(key, default)

    routes._under = Counting(routes._under)

    assert routes.find(":" * 256, None) == "*"
    assert len(looked) <= len("a:b:") + 1


segments = st.sampled_from(["a", "b", "system"])
topics = st.lists(segments, min_size=1, max_size=4).map(":".join)
patterns = st.one_of(
    topics,
    st.lists(segments, max_size=3).map(lambda parts: ":".join([*parts, "*"])),
)
versions = st.sampled_from([None, "v1", "v2"])


@relaxed
@given(st.sets(st.tuples(patterns, versions), max_size=12), topics, versions)
def test_a_look_up_agrees_with_reading_all_routes(routes, topic, version):
    """The rules, spelled out slowly: best pattern first, then its version."""
    found = RouteTable()
    for pattern, of in routes:
        found.add(pattern, (pattern, of), of, system=True)

    fitting = {p for p, _ in routes if Pattern(p, allow_system=True).matches(topic)}
    exact_then_longest = sorted(fitting, key=lambda p: (p != topic, -len(p)))
    expected = next(
        (
            (pattern, of)
            for pattern in exact_then_longest
            for of in dict.fromkeys([version, None])
            if (pattern, of) in routes
        ),
        None,
    )
    assert found.find(topic, version) == expected
