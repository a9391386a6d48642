"""What a newcomer sees of the package at the prompt: ``help``, ``dir`` and signatures."""

from __future__ import annotations

import inspect
import pydoc
from enum import Enum

import pytest

import eyewall
from eyewall import Hub, Logger, Metrics, Server
from eyewall.client import Client
from eyewall.testing import TestClient, TestHub

SERVER = {
    *("from_settings", "hub", "routes", "port", "ops_port", "url"),
    *("on", "handle", "use", "include", "on_startup", "on_shutdown", "background"),
    *("start", "shutdown", "run"),
}
INTERNAL = ("Registry", "Inside", "Node", "Front", "stand_", "rebuilt", "adopt", "become")


def shown(kind: type) -> set[str]:
    """The names that ``help`` shows of a class."""
    return {name for name in dir(kind) if not name.startswith("_")}


def test_help_of_the_server_shows_what_the_documentation_has():
    assert shown(Server) == SERVER
    assert Server.__mro__ == (Server, object)


def test_help_of_the_server_says_nothing_of_what_is_inside():
    text = pydoc.render_doc(Server, renderer=pydoc.plaintext)

    assert not [word for word in INTERNAL if word in text]


def test_help_of_the_hub_shows_nothing_that_is_for_its_server():
    assert not shown(Hub) & {"serve", "turn", "turn_to", "stops_by", "node"}


def classes() -> list[type]:
    public = [getattr(eyewall, name) for name in eyewall.__all__]
    found = [each for each in public if isinstance(each, type) and not issubclass(each, Enum)]
    # What stands behind a port does what the port says.
    return [each for each in found if ".adapters." not in each.__module__] + [
        *(Client, TestClient, TestHub)
    ]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_each_public_method_says_what_it_does(kind):
    for name in shown(kind):
        found = inspect.getattr_static(kind, name)
        if kind in (Logger, Metrics):
            continue  # their names say it
        if inspect.isfunction(found) or isinstance(found, property | classmethod):
            assert inspect.getdoc(getattr(kind, name)), name


def test_the_signature_of_the_server_names_every_option_with_its_default():
    parameters = inspect.signature(Server).parameters.values()

    assert all(each.kind is each.KEYWORD_ONLY for each in parameters)
    assert all(each.default is not each.empty for each in parameters)
    assert all(isinstance(each.annotation, str) and each.annotation != "Any" for each in parameters)


def test_dir_of_the_package_is_what_is_for_users():
    """Its public names, and the modules beside it that the documentation names."""
    seen = {name for name in dir(eyewall) if not name.startswith("_")}

    assert seen >= {name for name in eyewall.__all__ if not name.startswith("_")}
    assert seen - set(eyewall.__all__) <= {
        *("adapters", "browser", "chat", "client", "container", "middleware", "testing")
    }
    assert seen >= {"client", "testing"}, "as they are imported here"


def test_help_of_the_package_begins_with_what_it_is():
    text = pydoc.render_doc(eyewall, renderer=pydoc.plaintext)

    assert "eyewall - a real-time hub for Python" in text
    assert not [word for word in INTERNAL if f" {word}(" in text]
