"""All that can be set from outside, in one place.

The values come from the defaults here, then a TOML or YAML file, then ``EYEWALL_*``
variables, then the command line; the later one counts. ``Settings.load`` reports all
mistakes together. Nothing else in the program reads the environment.

Values that are secret are marked so, and appear in no ``repr``, message or listing.
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
from eyewall.settings.sources import CONFIG, DEFAULT_FILE, as_variable, gather

MASK = "***"


class _Read(Checked):
    """Settings that know where they were read. That is no setting itself."""

    __slots__ = ("_file", "_origins")
    _origins: Mapping[str, str]
    _file: Path | None

    def read_from(self, origins: Mapping[str, str], file: Path | None) -> Self:
        """Note where the values are from, and return the same."""
        object.__setattr__(self, "_origins", MappingProxyType(dict(origins)))
        object.__setattr__(self, "_file", file)
        return self

    @property
    def file(self) -> Path | None:
        """The file that they were read from; None for settings that were read from none."""
        return getattr(self, "_file", None)

    @property
    def were_read(self) -> bool:
        """Whether ``load`` has read them, and not a program made them."""
        return hasattr(self, "_file")

    @property
    def origins(self) -> Mapping[str, str]:
        """Where each value that was read is from, by its key (``queue.size``): a file, a
        variable, or the command line. Empty for settings that were not read."""
        return getattr(self, "_origins", MappingProxyType({}))

    def value(self, key: str) -> Any:
        """Return the value of a key: ``queue.size``."""
        return attrgetter(key)(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(_Read):
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

    client_commands: bool | Collection[str] = False
    """Whether clients may join rooms and so on by themselves, or which of the commands they may
    use: join, leave, publish, members, presence, typing, history."""

    implicit_rooms: bool = True
    """Whether joining a room that nobody created makes it."""

    trusted_proxies: Collection[str] = ()
    """Addresses and networks whose ``X-Forwarded-For`` is believed."""

    check_origin: Collection[str] | None = None
    """Origins that browsers may come from beside the server's own; None is that one only, and
    ``["none"]`` not even that."""

    refuse_with: str = "http"
    """How a client hears that the authenticator said no: ``http`` is a 401, which a browser's
    script can't tell from a network that is down; ``close`` closes with 4504."""

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
            where = "where the clients are (server.port)"
            raise SettingsError([f"ops.port: {ops.port} is {where}; take another"])

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
            mistakes += [
                f"{key}: {text}{as_variable(text, origin)}" + (f" ({origin})" if origin else "")
                for text in texts
            ]
        if mistakes:
            raise SettingsError(mistakes)
        for name, group in _GROUPS.items():
            values[name] = group(**values.get(name, {}))
        return cls(**values).read_from(sources.origins, sources.file)

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


def source_of(settings: Settings) -> str:
    """Say from which file the settings were read, or that there was none."""
    if settings.file is not None:
        return str(settings.file)
    if not settings.were_read:
        return "no file: a program has made them"
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
    # JSON's texts, numbers, booleans and lists of texts are TOML's too.
    return f"{key} = {json.dumps(value)}"
