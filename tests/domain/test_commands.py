"""Which of the server's own requests clients may make."""

import pytest

from eyewall.domain.commands import COMMANDS, commands_of, switched_off


@pytest.mark.parametrize(
    ("given", "on"),
    [
        (True, set(COMMANDS)),
        (False, set()),
        ([], set()),
        ({"join", "leave"}, {"join", "leave"}),
        (["history", "history"], {"history"}),
        (("typing",), {"typing"}),
        ({"join": 1}, {"join"}),
    ],
)
def test_all_or_none_or_those_that_are_named(given, on):
    assert commands_of(given) == on


def test_a_name_that_is_none_is_told_with_those_that_are():
    with pytest.raises(ValueError, match="jion") as error:
        commands_of(["join", "jion", 5, "resume"])

    assert all(name in str(error.value) for name in COMMANDS)


@pytest.mark.parametrize("given", [None, 1, 0, "join", b"join", iter(["join"]), object()])
def test_what_is_no_choice_is_refused(given):
    with pytest.raises(ValueError, match="client_commands must be True, False or a set of names"):
        commands_of(given)


def test_who_asks_for_one_that_is_off_is_told_how_to_turn_it_on():
    text = switched_off("typing")

    assert "system:typing is switched off" in text
    assert "client_commands" in text
