"""The page of the API has every public name, with the keywords and defaults of the code."""

from __future__ import annotations

import ast
import builtins
import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import eyewall
import eyewall.client
import eyewall.middleware
import eyewall.testing
import eyewall.testing.contracts
from eyewall.domain.errors import EyewallError

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
ADAPTERS = dict(re.findall(r"^\| `(\w+)\(.*?\)` \| `(eyewall\.[\w.]+)`", PAGE, re.MULTILINE))
OBJECTS: dict[str, Any] = {
    "server": eyewall.Server,
    "Server": eyewall.Server,
    "hub": eyewall.Hub,
    "ctx": eyewall.Context,
    "conn": eyewall.Connection,
    "msg": eyewall.Envelope,
    "Target": eyewall.Target,
    "client": eyewall.client.Client,
    "th": eyewall.testing.TestHub,
}
INTERNAL = {"Context": {"authorize_again", "check_owner"}, "Connection": {"enter"}}
"""Methods of these that are the package's own."""
CODE = re.findall(r"`([^`\n]+)`", PAGE)
KNOWN = {
    **vars(builtins),
    **{name: getattr(eyewall, name) for name in eyewall.__all__},
    **vars(eyewall.client),
    **vars(eyewall.testing),
    **vars(eyewall.testing.contracts),
    **vars(eyewall.middleware),
    **{name: getattr(importlib.import_module(module), name) for name, module in ADAPTERS.items()},
    "timedelta": timedelta,
}


CALL = re.compile(r"(await )?(?:(\w+)\.)?(\w+)\((.*)\)")


def calls() -> Iterator[tuple[str, bool, str, str, str]]:
    """Each signature in a row's first cell or on a line of its own."""
    for line in PAGE.splitlines():
        found = re.match(r"(?:\| )?`([^`]+)`(?: \||$)", line)
        match = CALL.fullmatch(found[1]) if found else None
        if found and match:
            yield found[1], match[1] is not None, match[2] or "", match[3], match[4]


CALLS = {text: rest for text, *rest in calls()}


def expected(parameters: str) -> dict[str, tuple[Any, Any]]:
    """The kind of each parameter, and its default as code."""
    function = ast.parse(f"def f({parameters}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    found: dict[str, tuple[Any, Any]] = {}
    none: list[Any] = [None] * (len(given.args) - len(given.defaults))
    for arg, default in zip(given.args, [*none, *given.defaults], strict=True):
        found[arg.arg] = (inspect.Parameter.POSITIONAL_OR_KEYWORD, default)
    if given.vararg:
        found[given.vararg.arg] = (inspect.Parameter.VAR_POSITIONAL, None)
    for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found[arg.arg] = (inspect.Parameter.KEYWORD_ONLY, default)
    if given.kwarg:
        found[given.kwarg.arg] = (inspect.Parameter.VAR_KEYWORD, None)
    return found


def same(default: Any, actual: Any) -> bool:
    if default is None or actual is inspect.Parameter.empty:
        return default is None and actual is inspect.Parameter.empty
    if isinstance(default, ast.Constant) and default.value is ...:
        return True  # the rest of the row says what it is
    value = eval(compile(ast.Expression(default), "api.md", "eval"), dict(KNOWN))
    return bool(value == actual) or repr(actual) == "<factory>"


def named(owner: str, name: str) -> Any:
    return KNOWN[name] if not owner else getattr(OBJECTS[owner], name)


@pytest.mark.parametrize("text", CALLS)
def test_a_signature_is_that_of_the_code(text):
    awaited, owner, name, parameters = CALLS[text]
    found = named(owner, name)

    actual = {n: p for n, p in inspect.signature(found).parameters.items() if n != "self"}
    said = expected(parameters)

    assert list(said) == list(actual)
    for each, (kind, default) in said.items():
        assert actual[each].kind is kind, each
        assert same(default, actual[each].default), each
    assert inspect.iscoroutinefunction(found) is awaited


def test_every_public_name_is_on_the_page():
    words = {word for code in CODE for word in re.findall(r"\w+", code)}

    assert set(eyewall.__all__) <= words


def test_the_page_has_no_name_that_is_not_there():
    said = {w for code in CODE for w in re.findall(r"(?<![\w./\"])[A-Z][a-z]\w*", code)}

    assert said - KNOWN.keys() - {"ChatSchema", "Container", "For", "Forwarded", "NewType"} == set()


@pytest.mark.parametrize("name", ["server", "hub", "ctx", "conn", "client", "th"])
def test_every_public_method_is_on_the_page(name):
    kind = OBJECTS[name]
    methods = {
        each
        for each in dir(kind)
        if not each.startswith("_") and inspect.isroutine(getattr(kind, each))
    }
    methods -= INTERNAL.get(kind.__name__, set())
    said = {
        method for awaited, owner, method, _ in CALLS.values() if owner and OBJECTS[owner] is kind
    }
    assert said == methods


@pytest.mark.parametrize("name", ["server", "hub", "ctx", "client", "th"])
def test_every_public_attribute_is_on_the_page(name):
    kind = OBJECTS[name]
    found = {
        each
        for each in dir(kind)
        if isinstance(inspect.getattr_static(kind, each), property) and not each.startswith("_")
    }
    words = {word for code in CODE for word in re.findall(r"\w+", code)}
    assert found <= words


@pytest.mark.parametrize(
    "name", [n for n in eyewall.__all__ if isinstance(getattr(eyewall, n), enum.EnumType)]
)
def test_an_enumeration_has_exactly_the_members_of_the_page(name):
    (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", PAGE, re.MULTILINE)

    assert re.findall(r"`(\w+)`", row) == [each.name for each in getattr(eyewall, name)]


def test_every_error_has_the_family_and_the_code_of_the_page():
    errors = {
        name
        for name in eyewall.__all__
        if isinstance(getattr(eyewall, name), type)
        and issubclass(getattr(eyewall, name), EyewallError)
    }
    section = PAGE.partition("## Errors")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)\(.*\)` \| (.*?) \| (.*?) ?\|$", section, re.MULTILINE)

    assert {name for name, *_ in rows} == errors - {"EyewallError"}
    for name, family, code in rows:
        kind = getattr(eyewall, name)
        parent = re.fullmatch(r"`(\w+)`", family)
        assert kind.__base__.__name__ == (parent[1] if parent else "EyewallError"), name
        if not issubclass(kind, eyewall.Misuse):
            assert code.strip("`") == kind.code, name
