"""Settings as a user has them: what counts, what is wrong, and what must not be seen."""

from __future__ import annotations

import dataclasses
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.domain.outbox import DropPolicy, QueueConfig
from eyewall.settings.groups import (
    AuthSettings,
    LimitSettings,
    ServerSettings,
    SettingsError,
    TlsSettings,
)
from eyewall.settings.schema import SettingsSchema, known_keys
from eyewall.settings.settings import Settings

COMMANDS = (
    "true or false, or a list of commands "
    "(join, leave, publish, members, presence, typing, history)"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder: no settings file lies about."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(environ: dict[str, str] | None = None, **overrides) -> Settings:
    return Settings.load(environ=environ or {}, overrides=overrides)


def mistakes(environ: dict[str, str] | None = None, **overrides) -> list[str]:
    with pytest.raises(SettingsError) as wrong:
        load(environ, **overrides)
    return list(wrong.value.mistakes)


# --- what counts


def test_without_anything_the_defaults_count():
    assert load() == Settings()


def test_the_defaults_are_closed():
    """Nothing is let in, listened on or believed that nobody asked for."""
    settings = Settings()

    assert settings.server.host == "127.0.0.1"
    assert settings.check_origin is None
    assert settings.trusted_proxies == ()
    assert settings.client_commands is False


def test_limits_are_off_unless_set():
    settings = Settings()

    assert settings.max_connections is None
    assert settings.max_connections_per_user is None
    assert settings.max_connections_per_address is None
    assert settings.limits.messages_per_second is None


def test_a_file_beats_the_defaults_the_environment_the_file_and_the_caller_them_all(folder):
    (folder / "eyewall.toml").write_text("[queue]\nsize = 1\nmax_bytes = 10\n[server]\nport = 1\n")
    environ = {"EYEWALL_QUEUE__SIZE": "2", "EYEWALL_SERVER__PORT": "2"}

    settings = load(environ, server={"port": 3})

    assert settings.server.port == 3
    assert (settings.queue.size, settings.queue.max_bytes) == (2, 10)
    assert settings.queue.drop_policy is DropPolicy.DROP_NEWEST


def test_the_file_can_be_named(folder):
    (folder / "eyewall.toml").write_text("workers = 1")
    (folder / "variable.toml").write_text("workers = 2")
    (folder / "path.toml").write_text("workers = 3")
    environ = {"EYEWALL_CONFIG": "variable.toml"}

    assert Settings.load(environ={}).workers == 1
    assert Settings.load(environ=environ).workers == 2
    assert Settings.load("path.toml", environ).workers == 3


def test_the_process_s_own_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("EYEWALL_WORKERS", "7")

    assert Settings.load().workers == 7


def test_port_is_taken_and_our_own_name_for_it_says_more():
    assert load({"PORT": "1"}).server.port == 1
    assert load({"PORT": "1", "EYEWALL_SERVER__PORT": "2"}).server.port == 2


@pytest.mark.parametrize(
    ("variable", "text", "group", "key", "value"),
    [
        ("EYEWALL_NODE_ID", "node-1", None, "node_id", "node-1"),
        ("EYEWALL_LEASE", "2.5", None, "lease", 2.5),
        ("EYEWALL_CLIENT_COMMANDS", "yes", None, "client_commands", True),
        ("EYEWALL_CLIENT_COMMANDS", "OFF", None, "client_commands", False),
        ("EYEWALL_CLIENT_COMMANDS", "join, leave", None, "client_commands", ("join", "leave")),
        ("EYEWALL_IMPLICIT_ROOMS", "off", None, "implicit_rooms", False),
        ("EYEWALL_MAX_CONNECTIONS", "100", None, "max_connections", 100),
        ("EYEWALL_MAX_CONNECTIONS", "off", None, "max_connections", None),
        (
            "EYEWALL_TRUSTED_PROXIES",
            "10.0.0.0/8, ::1",
            None,
            "trusted_proxies",
            ("10.0.0.0/8", "::1"),
        ),
        ("EYEWALL_CHECK_ORIGIN", "https://a.b", None, "check_origin", ("https://a.b",)),
        (
            "EYEWALL_QUEUE__DROP_POLICY",
            "drop_oldest",
            "queue",
            "drop_policy",
            DropPolicy.DROP_OLDEST,
        ),
        ("EYEWALL_HEARTBEAT__INTERVAL", "5", "heartbeat", "interval", 5.0),
        ("EYEWALL_COMPRESSION__ENABLED", "yes", "compression", "enabled", True),
        ("EYEWALL_COMPRESSION__THRESHOLD", "0", "compression", "threshold", 0),
        ("EYEWALL_COMPRESSION__MAX_RATIO", "off", "compression", "max_ratio", None),
        ("EYEWALL_LIMITS__MESSAGES_PER_SECOND", "0.5", "limits", "messages_per_second", 0.5),
        ("EYEWALL_LIMITS__RATE", "0.5", "limits", "rate", 0.5),
        ("EYEWALL_LOGGING__LEVEL", "DEBUG", "logging", "level", "debug"),
        ("EYEWALL_OFFLINE__KIND", "memory", "offline", "kind", "memory"),
        ("EYEWALL_OFFLINE__PATH", "/var/lib/x.db", "offline", "path", "/var/lib/x.db"),
        ("EYEWALL_OFFLINE__MAX_AGE", "60", "offline", "max_age", 60.0),
        ("EYEWALL_METRICS__KIND", "prometheus", "metrics", "kind", "prometheus"),
        ("EYEWALL_NODE_ID", "", None, "node_id", None),
    ],
)
def test_a_variable_is_read_in_the_type_of_its_setting(variable, text, group, key, value):
    settings = load({variable: text})

    assert getattr(getattr(settings, group) if group else settings, key) == value


def test_tokens_have_owners(folder):
    (folder / "eyewall.toml").write_text(
        '[auth]\nkind = "static"\n[auth.tokens]\n'
        's3cret = {user_id = "ada", roles = ["admin"], tags = ["beta"], attributes = {plan = 1}}\n'
    )

    owner = load().auth.tokens["s3cret"]

    assert (owner.user_id, owner.roles, owner.tags) == ("ada", {"admin"}, {"beta"})
    assert owner.attributes == {"plan": 1}


def test_tokens_fit_into_one_variable_as_json():
    settings = load(
        {"EYEWALL_AUTH__KIND": "static", "EYEWALL_AUTH__TOKENS": '{"T": {"user_id": "a"}}'}
    )

    assert settings.auth.tokens["T"].user_id == "a"


def test_a_public_key_is_read_from_its_file(folder):
    (folder / "key.pem").write_text("PEM")
    settings = load(auth={"kind": "jwt", "public_key": "key.pem", "algorithms": ["RS256"]})

    assert settings.auth.jwt_key() == "PEM"
    assert AuthSettings(kind="jwt", key="shared", algorithms=("HS256",)).jwt_key() == "shared"


def test_compression_is_off_unless_it_is_enabled():
    assert load().compression.config() is None
    assert load(compression={"enabled": True}).compression.config() == CompressionConfig()

    config = load(compression={"enabled": "on", "level": "1", "max_ratio": 20}).compression.config()

    assert config == CompressionConfig(level=1, max_ratio=20.0)


# --- what is wrong

TABLE = [
    ({"EYEWALL_COMPRESSION__LEVEL": "10"}, "compression.level: expected a whole number from 1 to"),
    ({"EYEWALL_COMPRESSION__MEM_LEVEL": "0"}, "compression.mem_level: expected a whole number"),
    ({"EYEWALL_COMPRESSION__THRESHOLD": "-1"}, "compression.threshold: expected a whole number"),
    (
        {"EYEWALL_COMPRESSION__MAX_RATIO": "0.5"},
        "compression.max_ratio: expected a number of at least 1, or off, not '0.5'",
    ),
    # variable or file, what it holds, and what must be told of it
    ({"EYEWALL_WORKERS": "0"}, "workers: expected a whole number of at least 1, not '0'"),
    ({"EYEWALL_WORKERS": "many"}, "workers: expected a whole number of at least 1, not 'many'"),
    ({"EYEWALL_WORKERS": "2.5"}, "workers: expected a whole number of at least 1, not '2.5'"),
    ({"EYEWALL_WORKERS": "off"}, "workers: expected a whole number of at least 1, not 'off'"),
    ({"EYEWALL_MAX_CONNECTIONS": "0"}, "max_connections: expected a whole number"),
    ({"EYEWALL_LEASE": "0"}, "lease: expected seconds, above 0, such as 2.5, not '0'"),
    ({"EYEWALL_LEASE": "inf"}, "lease: expected seconds"),
    ({"EYEWALL_LEASE": "nan"}, "lease: expected seconds"),
    ({"EYEWALL_CLIENT_COMMANDS": "maybe"}, f"client_commands: expected {COMMANDS}, not 'maybe'"),
    ({"EYEWALL_CLIENT_COMMANDS": ","}, f"client_commands: expected {COMMANDS}, not ','"),
    ({"EYEWALL_CLIENT_COMMANDS": "join,true"}, f"client_commands: expected {COMMANDS}"),
    ({"EYEWALL_CLIENT_COMMANDS": "system:join"}, f"client_commands: expected {COMMANDS}"),
    ({"EYEWALL_NODE_ID": "a\nb"}, "node_id: expected 1 to 200 printable characters"),
    ({"EYEWALL_CLUSTER_CHANNEL": "x" * 201}, "cluster_channel: expected 1 to 200 printable"),
    ({"EYEWALL_TRUSTED_PROXIES": "10.0.0.0/8,proxy"}, "trusted_proxies: expected a list of"),
    ({"EYEWALL_SERVER__PORT": "65536"}, "server.port: expected a whole number from 0 to 65535"),
    ({"EYEWALL_SERVER__HOST": " "}, "server.host: expected a line of text"),
    ({"PORT": "http"}, "server.port: expected a whole number from 0 to 65535, not 'http' (PORT)"),
    ({"EYEWALL_QUEUE__DROP_POLICY": "x"}, "drop_policy: expected one of drop_newest, drop_oldest"),
    ({"EYEWALL_BUS__KIND": "redis"}, "bus.kind: expected memory, the only one that this"),
    ({"EYEWALL_STATE__KIND": "redis"}, "state.kind: expected memory, the only one"),
    ({"EYEWALL_HISTORY__KIND": "redis"}, "history.kind: expected memory, the only one"),
    ({"EYEWALL_LIMITS__KIND": "redis"}, "limits.kind: expected one of none, memory, not"),
    ({"EYEWALL_LIMITS__KIND": "memory"}, "limits.rate: limits.kind = memory needs a rate"),
    ({"EYEWALL_LIMITS__RATE": "-1"}, "limits.rate: expected a number of messages per second"),
    ({"EYEWALL_OFFLINE__KIND": "disk"}, "offline.kind: expected one of none, memory, sqlite"),
    ({"EYEWALL_OFFLINE__KIND": "sqlite"}, "offline.path: offline.kind = sqlite needs the path"),
    ({"EYEWALL_OFFLINE__DEFAULT": "store"}, "offline.default: offline.default = store needs"),
    ({"EYEWALL_OFFLINE__DEFAULT": "keep"}, "offline.default: expected one of store, drop"),
    ({"EYEWALL_OFFLINE__MAX_AGE": "0"}, "offline.max_age: expected seconds, above 0"),
    ({"EYEWALL_AUTH__KIND": "ldap"}, "auth.kind: expected one of none, static, jwt, not 'ldap'"),
    ({"EYEWALL_METRICS__KIND": "otel"}, "metrics.kind: expected one of none, prometheus"),
    ({"EYEWALL_LOGGING__KIND": "xml"}, "logging.kind: expected one of text, json"),
    ({"EYEWALL_LOGGING__LEVEL": "loud"}, "logging.level: expected one of debug, info"),
    ({"EYEWALL_LIMITS__MESSAGES_PER_SECOND": "0"}, "expected a number of messages"),
    ({"EYEWALL_HEARTBEAT__INTERVAL": "90"}, "pong_timeout must be at least interval"),
    ({"EYEWALL_TLS__CERT": "nowhere.pem"}, "tls.cert: expected the path of an existing file"),
    ({"EYEWALL_TLS__CERT": "nowhere.pem"}, "tls.key: tls.cert needs it too"),
    ({"EYEWALL_TLS__KEY": "nowhere.pem"}, "tls.cert: tls.key needs it too"),
    ({"EYEWALL_AUTH__KIND": "static"}, "auth.tokens: auth.kind = static needs a table"),
    ({"EYEWALL_AUTH__KIND": "jwt"}, "auth.key: auth.kind = jwt needs key or public_key"),
    ({"EYEWALL_AUTH__KIND": "jwt"}, "auth.algorithms: auth.kind = jwt needs the algorithms"),
    ({"EYEWALL_AUTH__ALGORITHMS": "none"}, "auth.algorithms: expected a list of JWT algorithms"),
    ({"EYEWALL_AUTH__ALGORITHMS": "HS256,RS256"}, "must not be mixed"),
    ({"EYEWALL_AUTH__LEEWAY": "-1"}, "auth.leeway: expected seconds, at least 0"),
    ({"EYEWALL_BUS": "memory"}, "bus: expected a table of settings (EYEWALL_BUS)"),
    ({"EYEWALL_WORKERS__X": "1"}, "workers: expected a whole number"),
    ({"EYEWALL_WORKER": "1"}, "worker: unknown key; did you mean workers? (EYEWALL_WORKER)"),
    ({"EYEWALL_BUSS__KIND": "memory"}, "buss: unknown key; did you mean bus? (EYEWALL_BUSS__KIND)"),
    ({"EYEWALL_QUEUE__SIZ": "1"}, "queue.siz: unknown key; did you mean size?"),
    ({"EYEWALL_PORT": "1"}, "port: unknown key; did you mean server.port?"),
    ({"EYEWALL_ZZZ": "1"}, "zzz: unknown key (EYEWALL_ZZZ)"),
    ({"EYEWALL_SERVER_PORT": "1"}, "server.port? As a variable it is EYEWALL_SERVER__PORT (two"),
    ({"EYEWALL_QUEUE_MAX_BYTES": "1"}, "EYEWALL_QUEUE__MAX_BYTES (two underscores)"),
    ({"EYEWALL_HEARTBEAT_INTERVAL": "1"}, "did you mean heartbeat.interval? As"),
    ({"EYEWALL_AUTH_KEY": "1"}, "auth_key: unknown key; did you mean auth.key? As"),
    ({"EYEWALL_SERVER__OPS_PORT": "1"}, "server.ops_port: unknown key; did you mean ops.port? As"),
    ({"EYEWALL_AUTH__SECRET": "x"}, "auth.secret: unknown key; did you mean auth.key? As"),
    ({"PORT": "7", "EYEWALL_OPS__PORT": "7"}, "ops.port: 7 is the clients' address (server.port)"),
    ({"EYEWALL_SERVER__HOST": "*", "EYEWALL_OPS__PORT": "8080"}, "ops.port: 8080 is the clients"),
    ({"EYEWALL_CONFIG": "nowhere.toml"}, "nowhere.toml: can't be read: No such file"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "told"), TABLE, ids=lambda value: value[:40] if isinstance(value, str) else None
)
def test_a_mistake_names_the_key_and_the_form_that_is_expected(environ, told):
    assert any(told in mistake for mistake in mistakes(environ)), mistakes(environ)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ('workers = "many"', "workers: expected a whole number"),
        ("workers = true", "workers: expected a whole number of at least 1, not True"),
        ("workers = 2.0", "workers: expected a whole number"),
        ("lease = true", "lease: expected seconds"),
        ("client_commands = 1", f"client_commands: expected {COMMANDS}, not 1"),
        (
            'client_commands = ["join", "jump"]',
            f"client_commands: expected {COMMANDS}, not ['join'",
        ),
        ("client_commands = [true]", f"client_commands: expected {COMMANDS}, not [True]"),
        ("check_origin = [1]", "check_origin: expected a list of origins"),
        ("node_id = 7", "node_id: expected 1 to 200 printable characters"),
        ("bus = 1", "bus: expected a table of settings (eyewall.toml)"),
        ("[[queue]]\nsize = 1", "queue: expected a table of settings"),
        ("[workers]\nx = 1", "workers: expected a whole number"),
        ('[auth]\nkind = "static"\ntokens = ["a"]', "auth.tokens: expected a table of token"),
        ('[auth.tokens]\na = "ada"', "auth.tokens: expected a table of token"),
        ('[auth.tokens]\na = {user = "ada"}', "entry 1 is not of that form"),
        ('[auth.tokens]\na = {user_id = "a"}\nb = {roles = "r"}', "entry 2 is not of that form"),
        (
            "workers = \n",
            "eyewall.toml: expected TOML, but line 1, column 11 is not: invalid value",
        ),
        ("workers 3", "line 1, column 9 is not: expected '=' after a key in a key/value pair"),
        ("[auth", "is not: expected ']' at the end of a table declaration"),
        ("check_origin = [1", "is not: unclosed array"),
        ("workers = 1\nworkers = 2", "is not"),
        ("[queue]\n[queue]", "is not: a table or key is defined twice"),
        ("ops_port = 9100", "ops_port: unknown key; did you mean ops.port? (eyewall.toml)"),
        ('[auth]\nsecret = "x"', "auth.secret: unknown key; did you mean auth.key? (eyewall.toml)"),
        ('[auth]\njwt-secret = "x"', "auth.jwt-secret: unknown key; did you mean auth.key?"),
        ("max-connections = 1", "max-connections: unknown key; did you mean max_connections?"),
        ('[jwt]\nkey = "x"', "jwt: unknown key; did you mean auth.kind?"),
        ('[logging]\nformat = "json"', "logging.format: unknown key; did you mean logging.kind?"),
        ('[tls]\ncertfile = "x"', "tls.certfile: unknown key; did you mean tls.cert?"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_the_file(folder, toml, told):
    (folder / "eyewall.toml").write_text(toml)

    found = mistakes()

    assert any(told in mistake for mistake in found), found
    assert any("eyewall.toml" in mistake for mistake in found)


def test_all_mistakes_are_told_together(folder):
    """Nobody has to start a server ten times to find ten mistakes."""
    (folder / "eyewall.toml").write_text("workers = 0\n[queue]\nsize = 0\nsiz = 1\n")
    environ = {"EYEWALL_LEASE": "x", "EYEWALL_BUS__KIND": "redis", "EYEWALL_AUTH__KIND": "jwt"}

    with pytest.raises(SettingsError) as wrong:
        load(environ, server={"port": "x"})

    keys = {mistake.partition(":")[0] for mistake in wrong.value.mistakes}
    assert keys == {
        *("workers", "queue.size", "queue.siz", "lease", "bus.kind", "server.port"),
        *("auth.key", "auth.algorithms"),
    }
    assert all(mistake in str(wrong.value) for mistake in wrong.value.mistakes)
    assert isinstance(wrong.value, ValueError)


def test_a_file_that_can_not_be_read_does_not_hide_the_other_mistakes(folder):
    (folder / "eyewall.toml").write_text("= nonsense")

    found = mistakes({"EYEWALL_WORKERS": "0"})

    assert len(found) == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: Settings(workers=0),
        lambda: Settings(lease=timedelta(0)),
        lambda: ServerSettings(port=-1),
        lambda: AuthSettings(kind="jwt"),
        lambda: TlsSettings(cert="nowhere.pem"),
        lambda: LimitSettings(burst=0),
        lambda: LimitSettings(kind="memory"),
        lambda: LimitSettings(rate=2.0, messages_per_second=3.0),
        lambda: QueueConfig(size=0),
    ],
)
def test_a_wrong_value_is_told_where_it_is_built(build):
    with pytest.raises(ValueError, match=r"at least|above|needs|expected"):
        build()


def test_a_timedelta_will_do_wherever_seconds_do():
    assert Settings(lease=timedelta(minutes=1)).lease == 60.0


def test_settings_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 1  # type: ignore[misc]


def test_a_mistake_in_yaml_is_told_with_what_was_expected(folder):
    (folder / "eyewall.yaml").write_text("auth: {kind: jwt")

    (mistake,) = mistakes({"EYEWALL_CONFIG": "eyewall.yaml"})

    assert "eyewall.yaml: expected YAML, but line 1, column 17 is not: expected ',' or" in mistake


def test_what_is_suggested_for_a_key_is_one():
    root = SettingsSchema()

    for group in (root, *(f.schema for f in root.fields.values() if hasattr(f, "schema"))):
        assert set(group.synonyms.values()) <= set(known_keys())
        assert not set(group.synonyms) & set(group.fields)


@pytest.mark.parametrize(
    "settings",
    [
        {"server": {"host": "10.0.0.5", "port": 9000}, "ops": {"port": 9000}},
        {"server": {"port": 0}, "ops": {"port": 0}},
        {"server": {"port": 9000}},
    ],
)
def test_a_port_may_be_taken_on_two_addresses(settings):
    assert load(**settings).server.port == settings["server"]["port"]


def test_settings_know_the_file_that_they_were_read_from(folder):
    assert load().file is None
    assert load().were_read
    (folder / "eyewall.toml").write_text("workers = 1")
    assert load().file == folder / "eyewall.toml"
    (folder / "other.toml").write_text("workers = 1")
    assert load({"EYEWALL_CONFIG": "other.toml"}).file == folder / "other.toml"
    assert not Settings().were_read


# --- what must not be seen

SECRET = "hunter2"


@pytest.mark.parametrize(
    "auth",
    [
        {"kind": "jwt", "key": SECRET, "algorithms": ["HS256"]},
        {"kind": "static", "tokens": {SECRET: {"user_id": "ada"}}},
    ],
)
def test_secrets_are_in_no_text_of_the_settings(auth):
    settings = load(auth=auth)

    assert SECRET not in repr(settings)
    assert SECRET not in settings.describe()
    assert "***" in settings.describe()


@pytest.mark.parametrize(
    "environ",
    [
        {"EYEWALL_AUTH": SECRET},
        {"EYEWALL_AUTH__TOKENS": SECRET},
        {"EYEWALL_AUTH__TOKENS": f'{{"{SECRET}": 1}}'},
        {"EYEWALL_AUTH__TOKENS": f'{{"{SECRET}": {{"user": "a"}}}}'},
        {"EYEWALL_AUTH__TOKENS": f'["{SECRET}"]'},
        {f"EYEWALL_AUTH__TOKENS__{SECRET.upper()}__USER_ID": "ada"},
        {"EYEWALL_AUTH__KEI": SECRET},
    ],
)
def test_secrets_are_in_no_mistake(environ):
    told = "\n".join(mistakes(environ))

    assert "auth" in told.lower()
    assert SECRET not in told.lower()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("eyewall.toml", f'[auth]\nkey = ["{SECRET}"]'),
        ("eyewall.toml", f'[auth]\nkey = "{SECRET}'),
        ("eyewall.toml", f"[auth.tokens.{SECRET}]\n[auth.tokens.{SECRET}]"),
        ("eyewall.toml", f'[auth.{SECRET}]\nuser_id = "ada"'),
        ("eyewall.yaml", f"auth:\n  key: *{SECRET}"),
        ("eyewall.yaml", f"auth:\n  key: '{SECRET}"),
        ("eyewall.yaml", f"auth:\n  key: !{SECRET} x"),
        ("eyewall.yaml", f"auth: &{SECRET} 1\nlimits: *{SECRET}x"),
        ("eyewall.toml", f"[auth]\nkey = {SECRET}"),
        ("eyewall.toml", f"[{SECRET}]\n[{SECRET}]"),
        ("eyewall.toml", f"a = {{ {SECRET} = 1, {SECRET} = 2 }}"),
        ("eyewall.toml", f"{SECRET} = {{}}\n{SECRET}.x = 2"),
    ],
)
def test_secrets_of_a_file_that_is_wrong_are_in_no_mistake(folder, name, text):
    (folder / name).write_text(text)

    told = "\n".join(mistakes({"EYEWALL_CONFIG": name}))

    assert SECRET not in told


def test_a_secret_is_not_in_the_traceback_either():
    """The error's causes are printed with it."""
    with pytest.raises(SettingsError) as wrong:
        load({"EYEWALL_AUTH__TOKENS": f'{{"{SECRET}": 1}}'})

    error: BaseException | None = wrong.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


# --- the listing


def test_the_listing_is_toml_that_gives_the_same_settings(folder):
    settings = load(
        max_connections=5, trusted_proxies=["::1"], queue={"drop_policy": "drop_oldest"}
    )
    (folder / "eyewall.toml").write_text(settings.describe())

    assert tomllib.loads(settings.describe())["max_connections"] == 5
    assert load() == settings


def test_the_listing_says_what_is_not_set():
    assert "# max_connections is not set" in Settings().describe()
    assert "# auth.key is not set" in Settings().describe()
