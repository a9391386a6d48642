"""The schema and the dataclasses say the same; keys that are unknown get a hint."""

from __future__ import annotations

from dataclasses import fields

import pytest

from eyewall.settings.schema import ASYMMETRIC, HMAC, SettingsSchema, known_keys, read
from eyewall.settings.settings import Settings


def keys_of(settings: Settings) -> set[str]:
    keys = set()
    for item in fields(settings):
        value = getattr(settings, item.name)
        inner = fields(value) if hasattr(value, "__dataclass_fields__") else ()
        keys |= {f"{item.name}.{f.name}" for f in inner} or {item.name}
    return keys


def test_every_setting_has_a_form_and_every_form_a_setting():
    assert set(known_keys()) == keys_of(Settings())


def test_what_is_right_is_read_in_its_own_type():
    values, mistakes = read(SettingsSchema(), {"workers": "3", "queue": {"size": "4"}})

    assert (values, mistakes) == ({"workers": 3, "queue": {"size": 4}}, {})


def test_mistakes_come_by_dotted_key():
    _, mistakes = read(SettingsSchema(), {"workers": 0, "queue": {"size": 0, "x": 1}, "bus": 1})

    assert set(mistakes) == {"workers", "queue.size", "queue.x", "bus"}


@pytest.mark.parametrize(
    ("values", "key", "told"),
    [
        ({"worker": 1}, "worker", "unknown key; did you mean workers?"),
        ({"queue": {"sizes": 1}}, "queue.sizes", "unknown key; did you mean size?"),
        ({"level": "info"}, "level", "unknown key; did you mean lease?"),
        ({"drop_policy": "x"}, "drop_policy", "unknown key; did you mean queue.drop_policy?"),
        ({"zzz": 1}, "zzz", "unknown key"),
        ({7: 1}, "7", "unknown key"),
        ({"auth": {"kee": "x"}}, "auth.kee", "unknown key; did you mean key?"),
    ],
)
def test_an_unknown_key_gets_a_hint(values, key, told):
    _, mistakes = read(SettingsSchema(), values)

    assert mistakes == {key: [told]}


def test_a_table_put_in_the_wrong_place_of_auth_is_not_named():
    """Its name may be a token whose heading ``tokens`` was forgotten."""
    _, mistakes = read(SettingsSchema(), {"auth": {"hunter2": {"user_id": "ada"}}})

    assert mistakes == {"auth": ["an unknown key (not shown) holds a table"]}


def test_a_key_that_is_there_and_wrong_is_not_missing():
    _, mistakes = read(
        SettingsSchema(), {"auth": {"kind": "jwt", "key": 7, "algorithms": ["none"]}}
    )

    assert set(mistakes) == {"auth.key", "auth.algorithms"}
    assert all(len(texts) == 1 for texts in mistakes.values())


def test_the_algorithms_are_those_that_the_authenticator_takes():
    import jwt

    known = set(jwt.algorithms.get_default_algorithms())

    assert set(HMAC + ASYMMETRIC) <= known
    assert not {"none"} & set(HMAC + ASYMMETRIC)
