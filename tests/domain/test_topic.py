"""Patterns: what a route may be registered for."""

import doctest
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain import topic
from eyewall.domain.topic import Pattern, is_system

relaxed = settings(deadline=None)
topics = st.lists(st.sampled_from(["", "a", "b", "chat", "system"]), min_size=1, max_size=4).map(
    ":".join
)


def test_the_examples_hold():
    assert doctest.testmod(topic).failed == 0


def test_an_exact_pattern_stands_for_its_topic_alone():
    pattern = Pattern("chat:lobby")

    assert pattern.matches("chat:lobby")
    assert not pattern.matches("chat:lobby:a")
    assert not pattern.matches("chat")
    assert not pattern.is_wildcard
    assert pattern.prefix == "chat:lobby"


def test_a_wildcard_stands_for_all_depths_below_its_prefix():
    pattern = Pattern("chat:*")

    assert pattern.is_wildcard
    assert pattern.prefix == "chat:"
    assert pattern.matches("chat:a")
    assert pattern.matches("chat:a:b")


@pytest.mark.parametrize("other", ["chat", "chats:a", "a:chat:b", ""])
def test_a_wildcard_does_not_stand_for_its_prefix_or_a_namesake(other):
    assert not Pattern("chat:*").matches(other)


def test_a_lone_star_stands_for_every_topic_but_the_servers():
    """A catch-all of an application never answers for the server."""
    pattern = Pattern("*")

    assert pattern.prefix == ""
    assert pattern.matches("chat")
    assert pattern.matches("a:b:c")
    assert pattern.matches("system")
    assert not pattern.matches("system:join")


def test_a_lone_star_of_the_servers_own_does_not_reach_system_topics_either():
    assert not Pattern("*", allow_system=True).matches("system:join")


@pytest.mark.parametrize("text", ["", None, 7, b"chat"])
def test_a_pattern_must_be_a_text(text):
    with pytest.raises(ValueError, match="1 to 256 characters"):
        Pattern(text)


def test_a_pattern_is_no_longer_than_a_topic_may_be():
    Pattern("a" * 256)

    with pytest.raises(ValueError, match="1 to 256 characters"):
        Pattern("a" * 257)


@pytest.mark.parametrize("text", ["chat*", "*:a", "a:*:b", "**", "a:**", "a*b", "*a", "a:b*"])
def test_a_star_is_the_whole_last_segment(text):
    with pytest.raises(ValueError, match="whole last segment"):
        Pattern(text)


@pytest.mark.parametrize("text", ["system:join", "system:*", "system:"])
def test_the_servers_topics_are_not_for_applications(text):
    with pytest.raises(ValueError, match="belong to the server"):
        Pattern(text)

    assert Pattern(text, allow_system=True).text == text


@pytest.mark.parametrize("text", ["system", "systems:a", "a:system:b"])
def test_only_the_first_segment_makes_a_topic_the_servers(text):
    Pattern(text)

    assert not is_system(text)


def test_a_pattern_is_a_value_that_does_not_change():
    assert Pattern("chat:*") == Pattern("chat:*")
    with pytest.raises(FrozenInstanceError):
        Pattern("chat:*").text = "system:*"


def test_a_pattern_shows_as_it_was_written():
    assert str(Pattern("chat:*")) == "chat:*"


@relaxed
@given(topics, st.integers(0, 4))
def test_a_wildcard_made_from_a_topics_own_segments_stands_for_it(text, depth):
    segments = text.split(":")[:depth]
    below = len(segments) < len(text.split(":"))
    wildcard = Pattern(":".join([*segments, "*"]), allow_system=True)

    expected = below and (bool(segments) or not is_system(text))
    assert wildcard.matches(text) == expected
