"""All that can be set from outside, in one place.

The values come from the defaults here, then a TOML or YAML file, then ``EYEWALL_*``
variables, then the command line; the later one counts. ``Settings.load`` reports all
mistakes together. Nothing else in the program reads the environment.

Values that are secret are marked so, and appear in no ``repr``, message or listing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from eyewall import settings_schema as schema
from eyewall.adapters.web.deflate import CompressionConfig
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.duration import Seconds
from eyewall.domain.identity import ConnMeta
from eyewall.domain.outbox import QueueConfig
from eyewall.settings_sources import gather

SECRET = {"secret": True}
MASK = "***"


class SettingsError(ValueError):
    """The settings are wrong; the text has every mistake on a line of its own."""

    def __init__(self, mistakes: list[str]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n  ".join([f"{count} in the settings:", *mistakes]))
        self.mistakes = tuple(mistakes)


class _Checked:
    """A group that checks itself where it is built; raises ``SettingsError``."""

    __slots__ = ()
    _schema: ClassVar[type[schema.Group]]

    def __post_init__(self) -> None:
        form = self._schema()
        given = {name: getattr(self, name) for name in schema.plain_keys(form)}
        values, mistakes = schema.read(form, given)
        if mistakes:
            raise SettingsError([f"{key}: {text}" for key, ts in mistakes.items() for text in ts])
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(_Checked):
    """Where the server listens."""

    _schema: ClassVar = schema.ServerSchema

    host: str = "127.0.0.1"
    """This machine only: whoever wants to be reached from outside says so."""

    port: int = 8080
    """0 takes a free one. ``PORT`` is taken too, after ``EYEWALL_SERVER__PORT``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSettings(_Checked):
    """Whether and how messages are compressed; ``CompressionConfig`` has the meanings."""

    _schema: ClassVar = schema.CompressionSchema

    enabled: bool = False
    """Small messages, which most are, gain nothing by it, and it costs time."""

    threshold: int = CompressionConfig().threshold
    level: int = CompressionConfig().level
    mem_level: int = CompressionConfig().mem_level
    max_ratio: float | None = CompressionConfig().max_ratio

    def config(self) -> CompressionConfig | None:
        """Return what ``Server`` takes."""
        if not self.enabled:
            return None
        return CompressionConfig(
            threshold=self.threshold,
            level=self.level,
            mem_level=self.mem_level,
            max_ratio=self.max_ratio,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings(_Checked):
    """What carries messages between nodes."""

    _schema: ClassVar = schema.BusSchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings(_Checked):
    """Where the state of rooms and users is kept."""

    _schema: ClassVar = schema.StateSchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings(_Checked):
    """Where rooms keep their messages."""

    _schema: ClassVar = schema.HistorySchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings(_Checked):
    """How the server knows who knocks: not at all, by fixed tokens, or by JWTs."""

    _schema: ClassVar = schema.AuthSchema

    kind: str = "none"
    tokens: Mapping[str, ConnMeta] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, metadata=SECRET
    )
    """For ``static``: each token with its owner."""

    key: str | None = field(default=None, repr=False, metadata=SECRET)
    """For ``jwt``: the shared secret, or the public key itself in PEM."""

    public_key: str | None = None
    """For ``jwt``: the path of a file with the public key in PEM, in place of ``key``."""

    algorithms: tuple[str, ...] = ()
    """For ``jwt``: the only ones that are accepted. There is no default, because what a
    token says of itself must not decide."""

    audience: str | None = None
    issuer: str | None = None

    leeway: Seconds = 0.0
    """Seconds by which clocks may differ."""

    user_claim: str = "sub"
    roles_claim: str = "roles"
    tags_claim: str = "tags"

    def jwt_key(self) -> str:
        """Return the key that tokens are checked with, from its file if it has one.

        Raises ``OSError`` if the file can't be read any more.
        """
        return Path(self.public_key).read_text() if self.public_key else self.key or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings(_Checked):
    """Who counts."""

    _schema: ClassVar = schema.MetricsSchema

    kind: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings(_Checked):
    """How log lines look: ``text`` for people, ``json`` for collectors."""

    _schema: ClassVar = schema.LoggingSchema

    kind: str = "text"
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings(_Checked):
    """How much one user may send; who has no user id is known by the address."""

    _schema: ClassVar = schema.LimitsSchema

    kind: str = "memory"

    messages_per_second: float | None = None
    """On the average; None is no limit."""

    burst: int = 20
    """Messages that may come at once after a pause: a client that comes back joins its
    rooms in one go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings(_Checked):
    """Paths of the certificate chain and its key in PEM; without them, no TLS."""

    _schema: ClassVar = schema.TlsSchema

    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(_Checked):
    """Everything that can be set. Times are seconds, sizes bytes; a limit of None is off."""

    _schema: ClassVar = schema.SettingsSchema

    node_id: str | None = None
    """None makes one of the host's name, the process id and a random part."""

    cluster_channel: str = "eyewall"
    """Clusters that share a broker tell themselves apart by it."""

    lease: Seconds = 10.0
    """A node that was not heard of for so long is taken for dead."""

    session_ttl: Seconds = 120.0
    """How long a client that was cut off finds its session, and its admission to rooms by
    invitation, again. Two minutes bear a lift, a tunnel, a restart; 0 keeps nothing."""

    presence_grace: Seconds = 0.0
    """A gap up to so long is not shown to others: no leave and join, and still online."""

    client_commands: bool = False
    """Whether clients may join rooms and so on by themselves."""

    implicit_rooms: bool = True
    """Whether joining a room that nobody created makes it."""

    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose ``X-Forwarded-For`` is believed."""

    check_origin: tuple[str, ...] | None = None
    """Origins that browsers may come from; None is the server's own only."""

    max_message_size: int = 1 << 20
    """Bytes, and as many when inflated. What is larger is an upload, which HTTP does better:
    here it would hold up the messages behind it."""

    max_connections: int | None = None
    """Handshakes under way count. Off: what a machine bears, only its owner knows, and
    the limit on descriptors stands behind it."""

    max_connections_per_user: int | None = None
    """The oldest goes for a new one. Off: tabs and devices are the application's matter."""

    max_connections_per_address: int | None = None
    """IPv6 is counted by its /64, which one customer has all of. Off: a school or a
    mobile network may be behind one address."""

    handshake_timeout: Seconds = 10.0
    """From the TCP connect to the 101, TLS and authentication included; who has not
    finished by then is cut off. Ten seconds bear a lost packet or two on a bad line."""

    workers: int = 64
    """Handlers that run at the same time. They await most of the time; 64 of them keep a
    database's pool busy."""

    worker_queue: int = 2048
    """Messages that wait for a worker, all lanes together. At a millisecond each the last of
    them waits 2 s if the handlers compute, and 32 ms if they await."""

    lane_queue: int = 64
    """Messages that wait in one lane, so that one flooder can't use up the whole: a
    thirty-second of it."""

    server: ServerSettings = field(default_factory=ServerSettings)
    queue: QueueConfig = field(default_factory=QueueConfig)
    heartbeat: HeartbeatConfig = field(default_factory=HeartbeatConfig)
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    bus: BusSettings = field(default_factory=BusSettings)
    state: StateSettings = field(default_factory=StateSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Settings:
        """Read the settings from a file, the environment and ``overrides``.

        Without ``path`` the file is the one that ``EYEWALL_CONFIG`` names, or
        ``eyewall.toml`` in the working folder if it is there. ``overrides`` is nested
        like the file: ``{"server": {"port": 80}}``. Raises ``SettingsError`` with all
        mistakes.
        """
        sources = gather(path, os.environ if environ is None else environ, overrides or {})
        values, wrong = schema.read(schema.SettingsSchema(), sources.values)
        mistakes = list(sources.mistakes)
        for key, texts in sorted(wrong.items()):
            origin = sources.origin(key)
            mistakes += [f"{key}: {text}" + (f" ({origin})" if origin else "") for text in texts]
        if mistakes:
            raise SettingsError(mistakes)
        for name, group in _GROUPS.items():
            values[name] = group(**values.get(name, {}))
        return cls(**values)

    def describe(self) -> str:
        """Return the settings as TOML, a key to a line, with secrets masked.

        What is off has no value in TOML and stands in a comment.
        """
        lines: list[str] = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _GROUPS:
                lines += [
                    _line(f"{item.name}.{inner.name}", getattr(value, inner.name), inner.metadata)
                    for inner in fields(value)
                ]
            else:
                lines.append(_line(item.name, value, item.metadata))
        return "\n".join(lines)


_GROUPS: dict[str, type[Any]] = {
    "server": ServerSettings,
    "queue": QueueConfig,
    "heartbeat": HeartbeatConfig,
    "compression": CompressionSettings,
    "bus": BusSettings,
    "state": StateSettings,
    "history": HistorySettings,
    "auth": AuthSettings,
    "metrics": MetricsSettings,
    "logging": LoggingSettings,
    "limits": LimitSettings,
    "tls": TlsSettings,
}


def _line(key: str, value: Any, metadata: Mapping[Any, Any]) -> str:
    if value is None or (metadata.get("secret") and not value):
        return f"# {key} is not set"
    if metadata.get("secret"):
        value = MASK
    if isinstance(value, tuple):
        value = list(value)
    # JSON's texts, numbers, booleans and lists of texts are TOML's too.
    return f"{key} = {json.dumps(value)}"
