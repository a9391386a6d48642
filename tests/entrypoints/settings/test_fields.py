"""The forms of values: what each takes, and that it takes its own result back."""

from __future__ import annotations

from datetime import timedelta

import marshmallow
import pytest

from eyewall.domain.identity import ConnMeta
from eyewall.settings import fields as form


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        (form.whole(), "12", 12),
        (form.whole(0, 10), 0, 0),
        (form.whole(optional=True), "OFF", None),
        (form.whole(optional=True), None, None),
        (form.number(), "0.5", 0.5),
        (form.number(1), "1", 1.0),
        (form.number(optional=True), "none", None),
        (form.seconds(), 3, 3.0),
        (form.seconds(), timedelta(minutes=1), 60.0),
        (form.seconds(zero=True), "0", 0.0),
        (form.flag(), "On", True),
        (form.flag(), "0", False),
        (form.choice("a", "b"), "B", "b"),
        (form.text(), "two words", "two words"),
        (form.text(optional=True), "off", None),
        (form.name(), "x" * 200, "x" * 200),
        (form.secret(), "-----BEGIN\nPEM", "-----BEGIN\nPEM"),
        (form.words("words"), "a, b,,c", ("a", "b", "c")),
        (form.words("words"), ["a"], ("a",)),
        (form.words("words"), "", ()),
        (form.words("words", optional=True), "off", None),
        (form.networks(), ["10.0.0.1/8", "::1"], ("10.0.0.1/8", "::1")),
        (form.file(), __file__, __file__),
    ],
)
def test_a_value_is_read_and_its_result_is_read_the_same(field, given, read):
    assert field.deserialize(given) == read
    assert type(field.deserialize(given)) is type(read)
    assert field.deserialize(read) == read


@pytest.mark.parametrize(
    ("field", "given"),
    [
        (form.whole(), True),
        (form.whole(), 1.0),
        (form.whole(), None),
        (form.whole(), 0),
        (form.whole(0, 10), 11),
        (form.number(), 0),
        (form.number(1), 0.5),
        (form.number(), True),
        (form.number(), "1e999"),
        (form.seconds(), 0),
        (form.seconds(zero=True), -0.1),
        (form.flag(), 1),
        (form.flag(), "off course"),
        (form.choice("a"), 1),
        (form.text(), ""),
        (form.text(), "a\x00b"),
        (form.text(), "off\n"),
        (form.name(), "x" * 201),
        (form.secret(), ""),
        (form.secret(), 7),
        (form.words("words"), [""]),
        (form.words("words"), {"a": 1}),
        (form.networks(), "10.0.0.256"),
        (form.file(), "/nowhere/at/all"),
    ],
)
def test_anything_else_is_refused(field, given):
    with pytest.raises(marshmallow.ValidationError, match="expected"):
        field.deserialize(given)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(marshmallow.ValidationError) as mistake:
        form.whole().deserialize("9" * 10 + "x" * 1000)

    assert len(str(mistake.value)) < 150


def test_a_secret_is_not_in_the_message():
    with pytest.raises(marshmallow.ValidationError) as mistake:
        form.secret().deserialize(["hunter2"])

    assert "hunter2" not in str(mistake.value)
    assert "not shown" in str(mistake.value)


@pytest.mark.parametrize(
    "given",
    [
        {"T": {"user_id": "ada", "roles": ["r"]}},
        '{"T": {"user_id": "ada", "roles": ["r"]}}',
        {"T": ConnMeta(user_id="ada", roles=frozenset({"r"}))},
    ],
)
def test_tokens_are_a_table_of_owners(given):
    owners = form.Tokens().deserialize(given)

    assert owners == {"T": ConnMeta(user_id="ada", roles=frozenset({"r"}))}


@pytest.mark.parametrize(
    "owner", [None, "ada", {"user": "ada"}, {"user_id": ""}, {"roles": "r"}, {"user_id": 7}]
)
def test_an_owner_of_a_wrong_form_is_named_by_its_place(owner):
    with pytest.raises(marshmallow.ValidationError, match="entry 2 is not") as mistake:
        form.Tokens().deserialize({"good": {}, "hunter2": owner})

    assert "hunter2" not in str(mistake.value)
