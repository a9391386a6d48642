"""The form of each setting, by group, and the messages for mistakes.

The schemas have forms, not defaults: those are in ``settings`` with their reasons. The schema of a
group also checks keys that depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar, Final

import marshmallow
from marshmallow import Schema, fields, validates_schema

from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.handshake import RefuseWith
from eyewall.domain.outbox import DropPolicy
from eyewall.domain.report import DROP, STORE
from eyewall.settings import fields as form
from eyewall.settings.hosts import LOOPBACK

SPLIT_STATE: Final = "split_state"
UNSAFE: Final = frozenset({SPLIT_STATE})
"""What ``allow_unsafe`` may name."""

HMAC = ("HS256", "HS384", "HS512")
ASYMMETRIC = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "ES256K", "EdDSA"),
)


class Group(Schema):
    """A table of settings. An unknown key is a mistake, with a suggestion."""

    hides_tables: ClassVar[bool] = False
    """Whether a message leaves out an unknown key that holds a table: it may be a secret."""

    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Names of other programs for a key, each with the full key here."""

    error_messages: dict[str, str] = {"type": "expected a table of settings"}  # noqa: RUF012

    class Meta:
        unknown = marshmallow.EXCLUDE  # reported below, with a suggestion

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _every_key_is_known(self, data: Any, original: Any, **kwargs: Any) -> None:
        if not isinstance(original, Mapping):
            return
        mistakes: dict[str, list[str]] = {}
        for key in original:
            if key in self.fields:
                continue
            if self.hides_tables and isinstance(original[key], Mapping):
                mistakes["_schema"] = ["an unknown key (not shown) holds a table"]
            else:
                mistakes[str(key)] = [f"unknown key{self._suggestion(str(key))}"]
        if mistakes:
            raise marshmallow.ValidationError(mistakes)

    def _suggestion(self, key: str) -> str:
        key = key.lower().replace("-", "_")
        known = list(known_keys())
        flat = [path for path in known if path.replace(".", "_") == key and path != key]
        synonyms = [self.synonyms[key]] if key in self.synonyms else []
        close = get_close_matches(key, self.fields, n=1)
        elsewhere = [path for path in known if path.rpartition(".")[2] == key]
        found = flat or synonyms or close or elsewhere
        return f"; did you mean {found[0]}?" if found else ""


def _unsafe(word: str) -> None:
    if word not in UNSAFE:
        raise ValueError


class ServerSchema(Group):
    synonyms = MappingProxyType(
        {"address": "server.host", "bind": "server.host", "origins": "check_origin"}
        | {"listen": "server.host", "cert": "tls.cert", "key": "tls.key"}
    )

    host = form.host()
    port = form.whole(0, 65535)
    allowed_hosts = form.words("hosts such as app.example.com", optional=True)
    start_page = form.flag()
    allow_unsafe = form.words(f"what may be unsafe ({', '.join(UNSAFE)})", _unsafe)


class OpsSchema(Group):
    host = form.host()
    port = form.whole(0, 65535, optional=True)

    @validates_schema
    def _an_address_has_a_port(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if data.get("host", LOOPBACK) != LOOPBACK and data.get("port") is None:
            raise marshmallow.ValidationError({"host": ["needs ops.port beside it"]})


class QueueSchema(Group):
    size = form.whole()
    max_bytes = form.whole()
    drop_policy = form.choice(*DropPolicy)


class HeartbeatSchema(Group):
    interval = form.seconds()
    pong_timeout = form.seconds()
    write_wait = form.seconds()

    @validates_schema
    def _fits_together(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        try:
            HeartbeatConfig(**data)
        except ValueError as mistake:
            raise marshmallow.ValidationError(str(mistake)) from None


class CompressionSchema(Group):
    enabled = form.flag()
    threshold = form.whole(0)
    level = form.whole(1, 9)
    mem_level = form.whole(1, 9)
    max_ratio = form.number(1, optional=True)


class BusSchema(Group):
    kind = form.choice("memory", what_is=", the only one that this version has")


class StateSchema(Group):
    kind = form.choice("memory", what_is=", the only one that this version has")


class HistorySchema(Group):
    kind = form.choice("memory", what_is=", the only one that this version has")


class OfflineSchema(Group):
    kind = form.choice("none", "memory", "sqlite")
    path = form.text(optional=True)
    default = form.choice(STORE, DROP)
    max_messages = form.whole()
    max_bytes = form.whole()
    max_age = form.seconds()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _kind_has_what_it_needs(
        self, data: Mapping[str, Any], original: Any, **kwargs: Any
    ) -> None:
        mistakes: dict[str, list[str]] = {}
        if data.get("kind") == "sqlite" and not _given(original, "path"):
            mistakes["path"] = ["offline.kind = sqlite needs the path of its file"]
        if data.get("kind", "none") == "none" and data.get("default") == STORE:
            mistakes["default"] = ["offline.default = store needs a kind that stores"]
        if mistakes:
            raise marshmallow.ValidationError(mistakes)


class MetricsSchema(Group):
    kind = form.choice("none", "prometheus")


class LoggingSchema(Group):
    synonyms = MappingProxyType(
        {"format": "logging.kind", "type": "logging.kind", "json": "logging.kind"}
    )

    kind = form.choice("text", "json")
    level = form.choice("debug", "info", "warning", "error")


class LimitsSchema(Group):
    kind = form.choice("none", "memory")
    rate = form.number(optional=True, unit=" of messages per second")
    burst = form.whole()
    messages_per_second = form.number(optional=True, unit=" of messages per second")

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _kind_has_what_it_needs(
        self, data: Mapping[str, Any], original: Any, **kwargs: Any
    ) -> None:
        mistakes: dict[str, list[str]] = {}
        names = ("rate", "messages_per_second")
        if data.get("kind") == "memory" and not any(
            _given(original, name) and data.get(name, name) is not None for name in names
        ):
            mistakes["rate"] = ["limits.kind = memory needs a rate, in messages per second"]
        rates = {data[name] for name in names if data.get(name) is not None}
        if len(rates) > 1:
            mistakes["messages_per_second"] = [
                "expected the value of limits.rate, of which it is the old name"
            ]
        if mistakes:
            raise marshmallow.ValidationError(mistakes)


class TlsSchema(Group):
    synonyms = MappingProxyType(
        {"certfile": "tls.cert", "cert_file": "tls.cert", "certificate": "tls.cert"}
        | {"chain": "tls.cert", "keyfile": "tls.key", "key_file": "tls.key"}
        | {"private_key": "tls.key"}
    )

    cert = form.file()
    key = form.file()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _both_or_none(self, data: Any, original: Any, **kwargs: Any) -> None:
        given = [key for key in ("cert", "key") if _given(original, key)]
        if len(given) == 1:
            missing = "key" if given == ["cert"] else "cert"
            raise marshmallow.ValidationError({missing: [f"tls.{given[0]} needs it too"]})


def _algorithm(word: str) -> None:
    if word not in HMAC + ASYMMETRIC:
        raise ValueError


class AuthSchema(Group):
    hides_tables = True
    synonyms = MappingProxyType(
        dict.fromkeys(
            ("secret", "secret_key", "shared_secret", "jwt_secret", "jwt_key", "password"),
            "auth.key",
        )
        | {"pem": "auth.public_key", "public_key_file": "auth.public_key", "token": "auth.tokens"}
        | {"type": "auth.kind", "provider": "auth.kind", "aud": "auth.audience"}
        | {"iss": "auth.issuer", "alg": "auth.algorithms", "clock_skew": "auth.leeway"}
        | {"sub_claim": "auth.user_claim", "id_claim": "auth.user_claim"}
    )

    kind = form.choice("none", "static", "jwt")
    tokens = form.Tokens()
    key = form.secret()
    public_key = form.file()
    algorithms = form.words(f"JWT algorithms ({', '.join(HMAC + ASYMMETRIC)})", _algorithm)
    audience = form.text(optional=True)
    issuer = form.text(optional=True)
    leeway = form.seconds(zero=True)
    user_claim = form.text()
    roles_claim = form.text()
    tags_claim = form.text()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _kind_has_what_it_needs(
        self, data: Mapping[str, Any], original: Any, **kwargs: Any
    ) -> None:
        # Checks the original table: a key that is there and wrong is not missing as well.
        mistakes: dict[str, list[str]] = {}
        if data.get("kind") == "static" and not _given(original, "tokens"):
            mistakes["tokens"] = [f"auth.kind = static needs {form.Tokens.FORM}"]
        if data.get("kind") == "jwt":
            if _given(original, "key") == _given(original, "public_key"):
                mistakes["key"] = ["auth.kind = jwt needs key or public_key, one of them"]
            if not _given(original, "algorithms"):
                mistakes["algorithms"] = ["auth.kind = jwt needs the algorithms to accept"]
        mistakes.update(_mixed(data.get("algorithms") or ()))
        if mistakes:
            raise marshmallow.ValidationError(mistakes)


def _mixed(algorithms: tuple[str, ...]) -> dict[str, list[str]]:
    # With both families an attacker could sign with the public key as a shared secret.
    if len({word in HMAC for word in algorithms}) < 2:
        return {}
    return {"algorithms": ["HS* and public-key algorithms must not be mixed"]}


def _given(table: Any, key: str) -> bool:
    return isinstance(table, Mapping) and bool(table.get(key))


def _group(schema: type[Group]) -> fields.Nested:
    return fields.Nested(schema, error_messages={"null": "expected a table of settings"})


class SettingsSchema(Group):
    """The whole of the settings."""

    synonyms = MappingProxyType(
        {"authenticator": "auth.kind", "authentication": "auth.kind", "jwt": "auth.kind"}
        | {"secret": "auth.key", "jwt_secret": "auth.key", "pubsub": "bus.kind"}
        | {"limiter": "limits.rate", "rate_limit": "limits.rate", "log_level": "logging.level"}
        | {"log_format": "logging.kind", "logger": "logging.kind", "log": "logging.kind"}
        | {"origins": "check_origin", "allowed_origins": "check_origin", "cors": "check_origin"}
        | {"proxies": "trusted_proxies", "ssl": "tls.cert", "certfile": "tls.cert"}
        | {"keyfile": "tls.key", "prometheus": "metrics.kind", "max_size": "max_message_size"}
    )

    node_id = form.name(optional=True)
    cluster_channel = form.name()
    lease = form.seconds()
    session_ttl = form.seconds(zero=True)
    presence_grace = form.seconds(zero=True)
    client_commands = form.commands()
    implicit_rooms = form.flag()
    trusted_proxies = form.networks()
    check_origin = form.origins()
    refuse_with = form.choice(*RefuseWith)
    max_message_size = form.whole()
    max_connections = form.whole(optional=True)
    max_connections_per_user = form.whole(optional=True)
    max_connections_per_address = form.whole(optional=True)
    handshake_timeout = form.seconds()
    workers = form.whole()
    worker_queue = form.whole()
    lane_queue = form.whole()
    server = _group(ServerSchema)
    ops = _group(OpsSchema)
    queue = _group(QueueSchema)
    heartbeat = _group(HeartbeatSchema)
    compression = _group(CompressionSchema)
    bus = _group(BusSchema)
    state = _group(StateSchema)
    history = _group(HistorySchema)
    offline = _group(OfflineSchema)
    auth = _group(AuthSchema)
    metrics = _group(MetricsSchema)
    logging = _group(LoggingSchema)
    limits = _group(LimitsSchema)
    tls = _group(TlsSchema)


def known_keys() -> Iterator[str]:
    """Return each key of the settings with its group, such as ``queue.size``."""
    for key, found in SettingsSchema().fields.items():
        if isinstance(found, fields.Nested):
            yield from (f"{key}.{inner}" for inner in found.schema.fields)
        else:
            yield key


def plain_keys(schema: Schema) -> Iterator[str]:
    """Return the keys of a schema that are not groups."""
    return (key for key, found in schema.fields.items() if not isinstance(found, fields.Nested))


def read(schema: Schema, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the typed values, and the mistakes by dotted key; one of the two is empty."""
    try:
        return schema.load(values), {}
    except marshmallow.ValidationError as error:
        return {}, dict(_by_key(error.messages))


def _by_key(messages: Any, group: str = "") -> Iterator[tuple[str, list[str]]]:
    for key, found in messages.items():
        path = group if key == "_schema" else f"{group}.{key}".lstrip(".")
        if isinstance(found, Mapping):
            yield from _by_key(found, path)
        else:
            yield path, list(found)
