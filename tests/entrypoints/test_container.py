"""The composition root: every setting reaches what it is about."""

from __future__ import annotations

import json

import pytest
from dependency_injector import providers

from eyewall import ConnMeta, MemoryPubSub, MemoryState, Server
from eyewall.adapters.auth.jwt import JwtAuthenticator
from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.observe.prometheus import PrometheusMetrics
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.container import Container
from eyewall.domain.mailbox import MailboxLimits
from eyewall.settings.groups import (
    AuthSettings,
    BusSettings,
    HistorySettings,
    LoggingSettings,
    MetricsSettings,
    OfflineSettings,
    SettingsError,
    StateSettings,
)
from eyewall.settings.settings import Settings
from tests.application.fitting_support import whole

KEY = "a-key-of-thirty-two-bytes-at-least"
STATIC = AuthSettings(kind="static", tokens={"s3cret": ConnMeta(user_id="ada", roles={"admin"})})
JWT = AuthSettings(kind="jwt", key=KEY, algorithms=("HS256",), audience="hub", roles_claim="may")


def build(**settings):
    return Container(settings=Settings(**settings)).server()


# --- settings without a port


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node_id", "n7"),
        ("cluster_channel", "blue"),
        ("lease", 3.0),
        ("session_ttl", 7.0),
        ("presence_grace", 0.5),
        ("client_commands", True),
        ("implicit_rooms", False),
        ("max_message_size", 999),
        ("max_connections", 11),
        ("max_connections_per_user", 12),
        ("max_connections_per_address", 13),
        ("workers", 3),
        ("worker_queue", 5),
        ("lane_queue", 7),
    ],
)
def test_a_plain_setting_reaches_the_node(name, value):
    assert getattr(build(**{name: value})._node.config, name) == value


def test_the_commands_that_are_named_reach_the_node():
    assert build(client_commands=("join", "leave"))._node.config.client_commands == {
        "join",
        "leave",
    }


def test_the_handshake_timeout_reaches_the_server():
    assert build(handshake_timeout=3.0)._handshake_timeout == 3.0


# --- ports


@pytest.mark.parametrize(
    ("settings", "port", "adapter"),
    [
        ({"bus": BusSettings(kind="memory")}, "pubsub", MemoryPubSub),
        ({"state": StateSettings(kind="memory")}, "state", MemoryState),
        ({"history": HistorySettings(kind="memory")}, "history", MemoryHistory),
        ({"offline": OfflineSettings(kind="none")}, "offline", type(None)),
        ({"offline": OfflineSettings(kind="memory")}, "offline", MemoryOffline),
        ({"offline": OfflineSettings(kind="sqlite", path="x.db")}, "offline", SqliteOffline),
        ({"auth": AuthSettings(kind="none")}, "authenticator", type(None)),
        ({"auth": STATIC}, "authenticator", StaticAuthenticator),
        ({"auth": JWT}, "authenticator", JwtAuthenticator),
        ({"metrics": MetricsSettings(kind="none")}, "metrics", type(None)),
        ({"metrics": MetricsSettings(kind="prometheus")}, "metrics", PrometheusMetrics),
    ],
    ids=str,
)
def test_a_kind_picks_its_adapter(settings, port, adapter):
    assert type(getattr(build(**settings)._node.ports, port)) is adapter


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_what_is_kept_for_users_who_are_away_has_its_limits(kind, tmp_path):
    limits = {"max_messages": 3, "max_bytes": 5, "max_age": 7.0}
    given = OfflineSettings(kind=kind, path=str(tmp_path / "x.db"), default="store", **limits)

    built = build(offline=given)._node

    assert built.config.offline_default == "store"
    assert built.ports.offline._limits == MailboxLimits(**limits)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_logging_has_its_form_and_its_level(capsys, kind):
    server = build(logging=LoggingSettings(kind=kind, level="warning"))
    server.logger.info("hidden")
    server.logger.warning("shown", token="hunter2")

    [line] = capsys.readouterr().err.splitlines()
    assert "hunter2" not in line
    if kind == "json":
        assert json.loads(line)["event"] == "shown"
    else:
        assert "shown" in line
        assert not line.startswith("{")


# --- an adapter of one's own


def test_overriding_one_provider_brings_an_own_adapter_and_leaves_the_others():
    class OwnState(MemoryState):
        """Somebody's own."""

    container = Container(settings=Settings(node_id="n7"))
    container.state.override(providers.Singleton(OwnState))
    server = container.server()

    assert type(server._node.ports.state) is OwnState
    assert type(server._node.ports.pubsub) is MemoryPubSub
    assert server.hub.node_id == "n7"
    assert type(build()._node.ports.state) is MemoryState


@pytest.mark.parametrize(
    "port", ["pubsub", "state", "history", "offline", "metrics", "authenticator", "logger"]
)
def test_every_port_has_a_provider_to_override(port):
    own = whole(port)
    container = Container(settings=Settings())
    getattr(container, port).override(providers.Object(own))

    assert getattr(container.server()._node.ports, port) is own


def test_a_container_gives_one_server_and_another_container_another():
    container, other = Container(settings=Settings()), Container(settings=Settings())

    assert container.server() is container.server()
    assert container.server() is not other.server()
    assert container.server()._node.ports.state is not other.server()._node.ports.state


# --- Server.from_settings


def test_from_settings_and_the_container_give_the_same():
    settings = Settings(
        node_id="n7", workers=3, auth=STATIC, metrics=MetricsSettings(kind="prometheus")
    )

    one, other = Server.from_settings(settings)._node, Container(settings=settings).server()._node

    assert one.config == other.config
    ports = (
        "pubsub",
        "state",
        "history",
        "offline",
        "metrics",
        "authenticator",
        "logger",
        "codec",
        "clock",
    )
    for port in ports:
        assert type(getattr(one.ports, port)) is type(getattr(other.ports, port)), port


def test_overrides_are_the_server_s_keywords_and_say_more_than_the_settings():
    state = MemoryState()

    server = Server.from_settings(Settings(workers=3, lane_queue=5), workers=4, state=state)

    assert (server._node.config.workers, server._node.config.lane_queue) == (4, 5)
    assert server._node.ports.state is state


def test_what_is_overridden_is_not_built():
    """The settings of an adapter that is not wanted need not be good for anything."""
    auth = AuthSettings(kind="jwt", key="no key for RS256", algorithms=("RS256",))
    with pytest.raises(ValueError, match="key"):
        Server.from_settings(Settings(auth=auth))

    server = Server.from_settings(Settings(auth=auth), authenticator=lambda handshake: ConnMeta())

    assert server._node.ports.authenticator is not None


@pytest.mark.parametrize("wrong", ["worker", "settings", "limit"])
def test_what_is_no_keyword_of_a_server_is_refused(wrong):
    with pytest.raises(TypeError, match=wrong):
        Server.from_settings(Settings(), **{wrong: None})


@pytest.mark.parametrize("read", [Server.from_settings, lambda: Container().server()])
def test_without_settings_file_and_environment_are_read(tmp_path, monkeypatch, read):
    """The environment says more than the file."""
    (tmp_path / "eyewall.toml").write_text("workers = 3\nlane_queue = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EYEWALL_CONFIG", raising=False)
    monkeypatch.setenv("EYEWALL_WORKERS", "4")

    config = read()._node.config

    assert (config.workers, config.lane_queue) == (4, 5)


def test_settings_that_are_wrong_are_told(monkeypatch):
    monkeypatch.setenv("EYEWALL_WORKERS", "none")

    with pytest.raises(SettingsError, match="workers"):
        Server.from_settings()
