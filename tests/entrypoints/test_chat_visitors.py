from __future__ import annotations

import pytest
from websockets.exceptions import InvalidStatus

from eyewall import ConnMeta, Handshake, Unauthorized
from eyewall.chat.visitors import by_name, tidy
from tests.entrypoints.chat_support import chat_server, visitors


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ada", "ada"),
        ("  Ada   Lovelace ", "Ada Lovelace"),
        ("Zoë 🌀", "Zoë 🌀"),
        ("x" * 32, "x" * 32),
        ("x" * 33, None),
        ("", None),
        ("   ", None),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d💻 \U0001fae9", "👩\u200d💻 \U0001fae9"),
        ("山田\u3000太郎", "山田 太郎"),
        ("a\u202eb", None),
        ("a\u2066b", None),
        ("a\ufeffb", None),
        ("a\u200bb", None),
        ("a\x07b", None),
    ],
)
def test_a_name_has_1_to_32_printable_characters(given, name):
    assert tidy(given) == name


def test_the_name_is_taken_from_the_query():
    assert by_name(Handshake(query={"name": " ada "})).user_id == "ada"


def test_a_bad_name_is_unauthorized():
    with pytest.raises(Unauthorized):
        by_name(Handshake(query={"name": "\t"}))


def test_no_name_at_all_is_nobody():
    assert by_name(Handshake()) == ConnMeta()


async def test_a_bad_name_is_refused_at_the_handshake():
    async with chat_server() as server, visitors(server) as visit:
        with pytest.raises(InvalidStatus) as refusal:
            await visit("x" * 33)

    assert refusal.value.response.status_code == 401
