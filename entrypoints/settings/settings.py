"""All settings of a server, with their defaults.

Values come from the defaults here, then a TOML or YAML file, then ``EYEWALL_*`` variables, then
the command line; a later source overrides an earlier one. ``Settings.load`` reports all mistakes
together. Rules of this package:

1. No other code of eyewall reads settings from the environment.
2. A secret value is in no ``repr``, message or listing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.duration import Seconds
from eyewall.domain.outbox import QueueConfig
from eyewall.settings import schema
from eyewall.settings.groups import (
    AuthSettings,
    BusSettings,
    Checked,
    CompressionSettings,
    HistorySettings,
    LimitSettings,
    LoggingSettings,
    MetricsSettings,
    OfflineSettings,
    OpsSettings,
    ServerSettings,
    SettingsError,
    StateSettings,
    TlsSettings,
)
from eyewall.settings.hosts import overlap
from eyewall.settings.sources import CONFIG, DEFAULT_FILE, read_sources, variable_hint

MASK = "***"


class _Sourced(Checked):
    """The sources of settings, which are no settings themselves: attributes, not fields."""

    __slots__ = ("_file", "_origins")
    _origins: Mapping[str, str]
    _file: Path | None

    def read_from(self, origins: Mapping[str, str], file: Path | None) -> Self:
        """Record the sources of the values; returns the same object."""
        object.__setattr__(self, "_origins", MappingProxyType(dict(origins)))
        object.__setattr__(self, "_file", file)
        return self

    @property
    def file(self) -> Path | None:
        """The file that the settings were read from; None without a file."""
        return getattr(self, "_file", None)

    @property
    def were_read(self) -> bool:
        """Whether ``load`` has read the settings. False for those that a program has built."""
        return hasattr(self, "_file")

    @property
    def origins(self) -> Mapping[str, str]:
        """The source of each value that was read, by its key (``queue.size``): a file, a
        variable, or the command line. Empty for settings that a program has built."""
        return getattr(self, "_origins", MappingProxyType({}))

    def value(self, key: str) -> Any:
        """Return the value of a key such as ``queue.size``; raises ``AttributeError``."""
        return attrgetter(key)(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(_Sourced):
    """All settings of a server. Times are seconds or ``timedelta``, sizes bytes; a limit of None
    is off. Raises ``SettingsError``, a ``ValueError``, for wrong values."""

    _schema: ClassVar = schema.SettingsSchema

    node_id: str | None = None
    """The name of the node. None makes one of host name, process id and a random part."""

    cluster_channel: str = "eyewall"
    """The name of the cluster: clusters that share a broker need different ones."""

    lease: Seconds = 10.0
    """Seconds without a sign of life after which a node counts as dead."""

    session_ttl: Seconds = 120.0
    """Seconds that the session of a lost connection, and its used invites, are kept. Two minutes
    cover a lift, a tunnel, a restart; 0 keeps nothing."""

    presence_grace: Seconds = 0.0
    """The grace period of a lost connection in seconds: until its end other clients see no leave
    and join, and the user stays online."""

    client_commands: bool | Collection[str] = False
    """The ``system:`` requests that clients may send: all, none, or a list of join, leave,
    publish, members, presence, typing, history."""

    implicit_rooms: bool = True
    """Whether a join creates a room that does not exist."""

    trusted_proxies: Collection[str] = ()
    """Addresses and networks of proxies whose ``X-Forwarded-For`` is trusted."""

    check_origin: Collection[str] | None = None
    """Allowed origins of browsers beside the server's own. None allows only that one, and
    ``["none"]`` allows no origin."""

    refuse_with: str = "http"
    """The answer to a client that the authenticator refuses. ``http`` is a 401, which a script in
    a browser can't tell from a lost network; ``close`` accepts and closes with 4504."""

    max_message_size: int = 1 << 20
    """Bytes of a message, before and after inflating. HTTP serves larger uploads better: here
    they delay the messages behind them."""

    max_connections: int | None = None
    """Pending handshakes count. Off: only its owner knows the capacity of a machine, and the
    limit on descriptors applies anyway."""

    max_connections_per_user: int | None = None
    """A new connection replaces the oldest one. Off: tabs and devices are up to the
    application."""

    max_connections_per_address: int | None = None
    """IPv6 addresses count by their /64, which belongs to one customer. Off: a school or a
    mobile network may share one address."""

    handshake_timeout: Seconds = 10.0
    """Seconds from the TCP connect to the 101, TLS and authentication included; then the
    connection is closed. Ten seconds cover a lost packet or two on a bad line."""

    workers: int = 64
    """Handlers that run at the same time. They await most of the time; 64 keep the connection
    pool of a database busy."""

    worker_queue: int = 2048
    """Messages that may wait for a worker, all lanes together. At a millisecond each, the last
    one waits 2 s if handlers compute, and 32 ms if they await."""

    lane_queue: int = 64
    """Messages that may wait in one lane: 1/32 of ``worker_queue``, so that one flooding client
    can't use it up."""

    server: ServerSettings = field(default_factory=ServerSettings)
    ops: OpsSettings = field(default_factory=OpsSettings)
    queue: QueueConfig = field(default_factory=QueueConfig)
    heartbeat: HeartbeatConfig = field(default_factory=HeartbeatConfig)
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    bus: BusSettings = field(default_factory=BusSettings)
    state: StateSettings = field(default_factory=StateSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    offline: OfflineSettings = field(default_factory=OfflineSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        server, ops = self.server, self.ops
        if ops.port and ops.port == server.port and overlap(ops.host, server.host):
            taken = f"ops.port: {ops.port} is the clients' address (server.port)"
            raise SettingsError([f"{taken}; take another"])

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Settings:
        """Return the settings from a file, the environment and ``overrides``.

        Without ``path`` the file is the one that ``EYEWALL_CONFIG`` names, or ``eyewall.toml`` in
        the working folder if it exists. ``environ`` is the process's own by default.
        ``overrides`` is nested like the file: ``{"server": {"port": 80}}``. Raises
        ``SettingsError`` with all mistakes.
        """
        sources = read_sources(path, os.environ if environ is None else environ, overrides or {})
        values, wrong = schema.read(schema.SettingsSchema(), sources.values)
        mistakes = list(sources.mistakes)
        for key, texts in sorted(wrong.items()):
            origin = sources.origin(key)
            mistakes += [
                f"{key}: {text}{variable_hint(text, origin)}" + (f" ({origin})" if origin else "")
                for text in texts
            ]
        if mistakes:
            raise SettingsError(mistakes)
        for name, group in _GROUPS.items():
            values[name] = group(**values.get(name, {}))
        return cls(**values).read_from(sources.origins, sources.file)

    def describe(self) -> str:
        """Return the settings as TOML, one key per line, with secrets masked.

        TOML has no value for off: such a key is in a comment.
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


def source_of(settings: Settings) -> str:
    """Return which file the settings were read from, or that there was none, as a phrase."""
    if settings.file is not None:
        return str(settings.file)
    if not settings.were_read:
        return "no file: a program has built them"
    where = Path(DEFAULT_FILE).absolute()
    return f"no file: there is no {where}; name one by --config or {CONFIG}"


_GROUPS: dict[str, type[Any]] = {
    "server": ServerSettings,
    "ops": OpsSettings,
    "queue": QueueConfig,
    "heartbeat": HeartbeatConfig,
    "compression": CompressionSettings,
    "bus": BusSettings,
    "state": StateSettings,
    "history": HistorySettings,
    "offline": OfflineSettings,
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
    # Strings, numbers, booleans and lists of strings have the same form in JSON and TOML.
    return f"{key} = {json.dumps(value)}"
