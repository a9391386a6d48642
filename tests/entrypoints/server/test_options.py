"""How an option travels: written where it is set, declared and used, and nowhere in between."""

from __future__ import annotations

import ast
import inspect
from dataclasses import Field, dataclass, fields
from types import ModuleType
from typing import Any

import pytest

from eyewall import Server, Settings, container
from eyewall.adapters.web.gateway import WebSocketGateway
from eyewall.application.config import NodeConfig, Ports
from eyewall.container import Container
from eyewall.server import assemble
from eyewall.server.options import Options, keywords_of
from eyewall.settings.schema import known_keys

READ_BY_THE_SERVER = {"start_page", "pages", "ops_host", "ops_port", "allow_unsafe", "tracer"}
"""Keywords that ``Server`` uses itself."""
MADE_BY_THE_SERVER = {"version", "heartbeat", "queue", "node_id"}
"""Fields of ``NodeConfig`` that are not an option of the same form."""
CODE = {"pages", "tracer", *keywords_of(Ports)} - {"queue"}
"""Keywords for adapters and rules, which no setting can hold."""
GROUPS = {"queue", "heartbeat", "compression"}
"""Keywords whose value is a whole group of settings."""

DEFAULTS = {p.name: p.default for p in inspect.signature(Server).parameters.values()}
TRAVELLERS = [field for field in fields(NodeConfig) if field.name not in MADE_BY_THE_SERVER]


def other_than(field: Field[Any]) -> Any:
    """A value that is not the field's default."""
    samples = {bool: not field.default, int: 7, float: 7.5, type(None): 7}
    return {"cluster_channel": "blue", "offline_default": "store"}.get(
        field.name, samples.get(type(field.default))
    )


def words_of(module: ModuleType) -> set[str]:
    """The keywords, attributes and strings in the code of a module."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    words = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    words |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return words | {node.value for node in nodes if isinstance(node, ast.Constant)}


def setting(name: str) -> str:
    """The key of the setting that becomes the keyword ``name``."""
    [key] = [
        key for key in known_keys() if name in (key.replace(".", "_"), key.removeprefix("server."))
    ]
    return key


def test_each_keyword_of_a_server_is_used():
    """A keyword that no part takes would do nothing."""
    taken = {name for part in (NodeConfig, Ports, WebSocketGateway) for name in keywords_of(part)}

    assert set(DEFAULTS) - taken == READ_BY_THE_SERVER


def test_each_keyword_that_is_no_code_can_be_set():
    assert set(container.keywords(Settings())) == set(DEFAULTS) - CODE
    assert all(setting(name) for name in set(DEFAULTS) - CODE - GROUPS)


def test_an_option_has_the_same_default_everywhere():
    settings = container.keywords(Settings())

    for field in TRAVELLERS:
        assert settings[field.name] == DEFAULTS[field.name] == field.default, field.name


@pytest.mark.parametrize("field", TRAVELLERS, ids=lambda field: field.name)
def test_an_option_travels_from_the_settings_to_the_node_by_its_name(field):
    value = other_than(field)
    group, _, key = setting(field.name).rpartition(".")
    told = {group: {key: value}} if group else {key: value}
    told.setdefault("offline", {})["kind"] = "memory"
    settings = Settings.load(environ={}, overrides=told)

    config = Container(settings=settings).server()._node.config

    assert getattr(config, field.name) == value != field.default


@pytest.mark.parametrize("field", TRAVELLERS, ids=lambda field: field.name)
def test_an_option_is_not_spelled_between_the_server_and_the_node(field):
    """Two are judged on the way: the batch depends on the one, and the store on the other."""
    spelled = {"worker_queue", "max_message_size", "offline_default"}
    for module in (container, assemble):
        assert field.name in spelled or field.name not in words_of(module)


def test_a_new_field_gets_the_option_of_its_name():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Slowed(NodeConfig):
        slow_mode: float = 0.0

    options = Options({**DEFAULTS, "node_id": "n1", "slow_mode": 5.0})

    assert options.for_part(Slowed)["slow_mode"] == 5.0
    assert "slow_mode" not in options.for_part(NodeConfig)


def test_an_unknown_option_is_refused():
    options = Options(DEFAULTS)

    with pytest.raises(TypeError, match="slow_mode"):
        options.changed({"slow_mode": 5.0})
    with pytest.raises(AttributeError, match="slow_mode"):
        options.slow_mode  # noqa: B018


def test_options_do_not_change():
    options = Options(DEFAULTS)

    assert options.changed({"workers": 3}).workers == 3
    assert options.workers == 64
    with pytest.raises(AttributeError):
        options.workers = 3
