"""Where settings come from, before anybody judges them."""

from __future__ import annotations

import sys

import pytest

from eyewall.application.ports.extras import needs
from eyewall.settings.sources import read_sources

MAPPING = "line 1, column 5 is not: mapping values are not allowed here"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_variables_nest_by_two_underscores_and_lose_their_case():
    sources = read_sources(None, {"EYEWALL_BUS__KIND": "memory", "EYEWALL_NODE_ID": "N1"}, {})

    assert sources.values == {"bus": {"kind": "memory"}, "node_id": "N1"}


def test_other_variables_are_nobody_s_business():
    assert read_sources(None, {"PATH": "x", "EYEWALL": "y", "MY_EYEWALL_X": "z"}, {}).values == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EYEWALL_SERVICE_HOST", "10.0.0.1"),
        ("EYEWALL_SERVICE_PORT", "80"),
        ("EYEWALL_SERVICE_PORT_HTTP", "80"),
        ("EYEWALL_PORT", "tcp://10.0.0.1:80"),
        ("EYEWALL_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("EYEWALL_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("EYEWALL_OPS_SERVICE_HOST", "10.0.0.1"),
        ("EYEWALL_OPS_SERVICE_PORT_METRICS", "9100"),
        ("EYEWALL_OPS_PORT", "tcp://10.0.0.1:9100"),
        ("EYEWALL_OPS_PORT_9100_TCP_ADDR", "10.0.0.1"),
        ("EYEWALL_TEST_TIME_UNIT", "3"),
    ],
)
def test_what_others_name_so_is_not_a_setting(variable, value):
    """Kubernetes sets some in every container, once a service is named eyewall."""
    assert read_sources(None, {variable: value}, {}).values == {}


@pytest.mark.parametrize("variable", ["EYEWALL_PORT", "EYEWALL_SERVICE", "EYEWALL_CONFIGS"])
def test_what_only_looks_like_it_is_a_mistake_to_be_told(variable):
    assert read_sources(None, {variable: "80"}, {}).values


def test_an_empty_variable_counts_as_not_set():
    """Compose files and shells leave such for what was not given."""
    assert read_sources(None, {"EYEWALL_NODE_ID": "", "PORT": ""}, {}).values == {}


def test_a_value_says_where_it_came_from(folder):
    (folder / "eyewall.toml").write_text("lease = 1\nworkers = 1\n[queue]\nsize = 1\n")
    sources = read_sources(None, {"EYEWALL_WORKERS": "2"}, {"lane_queue": 3})

    assert sources.origin("lease") == "eyewall.toml"
    assert sources.origin("workers") == "EYEWALL_WORKERS"
    assert sources.origin("queue.size") == "eyewall.toml"
    assert sources.origin("queue") == "eyewall.toml"
    assert sources.origin("lane_queue") == "the command line or the caller"
    assert sources.origin("server.port") is None


def test_groups_are_merged_key_by_key(folder):
    (folder / "eyewall.toml").write_text("[queue]\nsize = 1\nmax_bytes = 2\n")

    sources = read_sources(None, {"EYEWALL_QUEUE__SIZE": "3"}, {"queue": {"max_bytes": 4}})

    assert sources.values == {"queue": {"size": "3", "max_bytes": 4}}


def test_a_group_that_an_earlier_source_had_wrong_is_told_all_the_same():
    sources = read_sources(None, {"EYEWALL_BUS": "memory", "EYEWALL_BUS__KIND": "memory"}, {})

    assert sources.mistakes == ["bus: expected a table of settings (EYEWALL_BUS)"]
    assert sources.values == {"bus": {"kind": "memory"}}


@pytest.mark.parametrize("name", ["settings.yaml", "settings.YML"])
def test_a_file_may_be_yaml(folder, name):
    (folder / name).write_text("workers: 3\nqueue:\n  size: 4\n")

    assert read_sources(name, {}, {}).values == {"workers": 3, "queue": {"size": 4}}


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_an_empty_yaml_file_is_an_empty_table(folder, text):
    (folder / "settings.yaml").write_text(text)

    assert read_sources("settings.yaml", {}, {}).mistakes == []


def test_yaml_makes_no_objects(folder):
    """A settings file is data: it can't run anything."""
    (folder / "settings.yaml").write_text("workers: !!python/object/apply:os.getpid []\n")

    sources = read_sources("settings.yaml", {}, {})

    assert sources.values == {}
    assert sources.mistakes == ["settings.yaml: expected YAML, but line 1, column 10 is not"]


def test_without_the_library_yaml_names_its_extra(folder, monkeypatch):
    (folder / "settings.yaml").write_text("workers: 3\n")
    monkeypatch.setitem(sys.modules, "yaml", None)

    sources = read_sources("settings.yaml", {}, {})

    assert sources.mistakes == [f"settings.yaml: {needs('reading YAML', 'yaml')}"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.ini", b"x", "expected a file that ends in .toml, .yaml or .yml"),
        ("a.toml", b"\xff", "expected text in UTF-8"),
        ("a.toml", b"x = \n", "expected TOML, but line 1, column 5 is not: invalid value"),
        ("a.yaml", b"- 1", "expected a table of settings"),
        ("a.yaml", b"a: b: c", f"expected YAML, but {MAPPING}"),
        ("a.toml", None, "can't be read: No such file or directory"),
    ],
)
def test_a_file_that_can_not_be_read_is_a_mistake(folder, name, content, told):
    if content is not None:
        (folder / name).write_bytes(content)

    assert read_sources(name, {}, {}).mistakes == [f"{name}: {told}"]


def test_a_variable_that_nests_too_deep_is_not_repeated():
    """The rest of its name may be a token."""
    sources = read_sources(None, {"EYEWALL_AUTH__TOKENS__HUNTER2": "x"}, {})

    assert sources.values == {}
    assert sources.mistakes == [
        "EYEWALL_AUTH__TOKENS__...: expected one variable EYEWALL_AUTH__TOKENS for all of it"
    ]
