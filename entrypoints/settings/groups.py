"""The groups of the settings. Each checks itself when it is built."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.domain.duration import Seconds
from eyewall.domain.identity import ConnMeta
from eyewall.domain.mailbox import MAX_AGE, MAX_BYTES, MAX_MESSAGES
from eyewall.settings import schema
from eyewall.settings.hosts import LOOPBACK

SECRET = {"secret": True}


class SettingsError(ValueError):
    """The settings are wrong. The text has one line per mistake; ``mistakes`` has them, too."""

    def __init__(self, mistakes: list[str]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n  ".join([f"{count} in the settings:", *mistakes]))
        self.mistakes = tuple(mistakes)


class Checked:
    """Checks a group against its schema when it is built; raises ``SettingsError``."""

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
class ServerSettings(Checked):
    """Where the server listens, and what it serves there."""

    _schema: ClassVar = schema.ServerSchema

    host: str = "127.0.0.1"
    """The host to listen on. This machine only by default: being reachable is a decision."""

    port: int = 8080
    """0 takes a free one. The variable ``PORT`` sets it, too; ``EYEWALL_SERVER__PORT`` overrides
    that."""

    allowed_hosts: Collection[str] | None = None
    """Hosts that requests may name; None serves every one. Off: only its owner knows the names
    of a server, those of health checks included."""

    start_page: bool = True
    """Whether ``serve`` and ``run()`` show a page at ``/`` to a browser on the same machine: a
    developer sees that the server runs."""

    allow_unsafe: Collection[str] = ()
    """Unsafe configurations that are allowed: ``split_state``, a shared bus with state or history
    that is not shared. No other configuration is refused at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsSettings(Checked):
    """The address of ``/metrics``, ``/healthz`` and ``/readyz``, apart from the clients' port."""

    _schema: ClassVar = schema.OpsSchema

    host: str = LOOPBACK
    """This machine only: metrics and readiness are not for the public."""

    port: int | None = None
    """None serves them on the clients' port; 0 takes a free port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSettings(Checked):
    """Whether and how messages are compressed; ``CompressionConfig`` explains the values."""

    _schema: ClassVar = schema.CompressionSchema

    enabled: bool = False
    """Off: most messages are small, gain nothing, and compression costs time."""

    threshold: int = CompressionConfig().threshold
    level: int = CompressionConfig().level
    mem_level: int = CompressionConfig().mem_level
    max_ratio: float | None = CompressionConfig().max_ratio

    def config(self) -> CompressionConfig | None:
        """Return the value for ``Server(compression=...)``."""
        if not self.enabled:
            return None
        return CompressionConfig(
            threshold=self.threshold,
            level=self.level,
            mem_level=self.mem_level,
            max_ratio=self.max_ratio,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings(Checked):
    """The bus between the nodes."""

    _schema: ClassVar = schema.BusSchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings(Checked):
    """The store for the state of rooms and users."""

    _schema: ClassVar = schema.StateSchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings(Checked):
    """The store for the history of rooms."""

    _schema: ClassVar = schema.HistorySchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineSettings(Checked):
    """The store for messages to users who are away. Limits are per user."""

    _schema: ClassVar = schema.OfflineSchema

    kind: str = "none"
    """``none``, ``memory`` or ``sqlite``. Off: the operator decides where messages are stored."""

    path: str | None = None
    """For ``sqlite``: the file, which is created if it does not exist."""

    default: str = "drop"
    """``store`` or ``drop``: for messages whose options don't say. A stored message has to be
    acked, which costs one answer per client."""

    max_messages: int = MAX_MESSAGES
    max_bytes: int = MAX_BYTES
    max_age: Seconds = MAX_AGE

    def limits(self) -> dict[str, Any]:
        """Return the limits as keywords of the adapters."""
        return {
            "max_messages": self.max_messages,
            "max_bytes": self.max_bytes,
            "max_age": self.max_age,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings(Checked):
    """How clients are authenticated: not at all, by static tokens, or by JWTs."""

    _schema: ClassVar = schema.AuthSchema

    kind: str = "none"
    tokens: Mapping[str, ConnMeta] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, metadata=SECRET
    )
    """For ``static``: each token with the ``ConnMeta`` of its owner."""

    key: str | None = field(default=None, repr=False, metadata=SECRET)
    """For ``jwt``: the shared secret, or the public key itself in PEM."""

    public_key: str | None = None
    """For ``jwt``: the path of a file with the public key in PEM, instead of ``key``."""

    algorithms: Collection[str] = ()
    """For ``jwt``: the accepted algorithms. No default: the header of a token must not decide."""

    audience: str | None = None
    issuer: str | None = None

    leeway: Seconds = 0.0
    """For ``jwt``: seconds by which the clocks of issuer and server may differ."""

    user_claim: str = "sub"
    roles_claim: str = "roles"
    tags_claim: str = "tags"

    def jwt_key(self) -> str:
        """Return the key to verify tokens with, read from ``public_key`` if that is set.

        Raises ``OSError`` if the file can no longer be read.
        """
        return Path(self.public_key).read_text() if self.public_key else self.key or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings(Checked):
    """The exporter of metrics."""

    _schema: ClassVar = schema.MetricsSchema

    kind: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings(Checked):
    """The form of log lines (``text`` for people, ``json`` for collectors) and the level."""

    _schema: ClassVar = schema.LoggingSchema

    kind: str = "text"
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings(Checked):
    """The rate limit of a user, or of an address for connections without a user id."""

    _schema: ClassVar = schema.LimitsSchema

    kind: str = ""
    """``memory`` limits per process, ``none`` does not. By default ``memory`` if there is a
    ``rate``: only the application knows how much is too much."""

    rate: float | None = None
    """Messages per second of one user or address, on average."""

    burst: int = 20
    """Messages that may arrive at once after a pause: a reconnecting client joins all its rooms
    at once."""

    messages_per_second: float | None = None
    """The old name of ``rate``."""

    def __post_init__(self) -> None:
        if self.rate is None:
            object.__setattr__(self, "rate", self.messages_per_second)
        if self.kind == "":
            object.__setattr__(self, "kind", "none" if self.rate is None else "memory")
        Checked.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings(Checked):
    """The paths of the certificate chain and its key in PEM. Without them, no TLS."""

    _schema: ClassVar = schema.TlsSchema

    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return a TLS context from the files as they are now; None without a certificate.

        Raises ``SettingsError`` if the files can't be used.
        """
        if self.cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # A key with a passphrase fails here, instead of asking on a terminal.
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or error.strerror
            if isinstance(error, ssl.SSLError) and not error.reason:  # "PEM lib", say
                why = "one is not in PEM, or the key has a passphrase"
            raise SettingsError([f"tls.cert and tls.key can't be used: {why}"]) from None
        return context
