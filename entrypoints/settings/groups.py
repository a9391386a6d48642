"""The groups of the settings, each of which checks itself where it is built."""

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
    """The settings are wrong; the text has every mistake on a line of its own."""

    def __init__(self, mistakes: list[str]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n  ".join([f"{count} in the settings:", *mistakes]))
        self.mistakes = tuple(mistakes)


class Checked:
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
class ServerSettings(Checked):
    """Where the server listens."""

    _schema: ClassVar = schema.ServerSchema

    host: str = "127.0.0.1"
    """This machine only: whoever wants to be reached from outside says so."""

    port: int = 8080
    """0 takes a free one. ``PORT`` is taken too, after ``EYEWALL_SERVER__PORT``."""

    allowed_hosts: Collection[str] | None = None
    """Hosts that requests may be for; None is every one. Off: the names under which a server
    is reached, health checks included, only its owner knows."""

    start_page: bool = True
    """Whether ``serve`` and ``run()`` show a page at ``/``, to a browser on the same machine and
    to no other: a developer who has just begun sees that the server runs."""

    allow_unsafe: Collection[str] = ()
    """What may be unsafe all the same: ``split_state``, a bus that other nodes share with
    state or history that they don't. Nothing else is refused at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsSettings(Checked):
    """Where ``/metrics``, ``/healthz`` and ``/readyz`` are, apart from the clients' port."""

    _schema: ClassVar = schema.OpsSchema

    host: str = LOOPBACK
    """This machine only: metrics and readiness are not for the public."""

    port: int | None = None
    """None leaves them on the clients' port; 0 takes a free one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSettings(Checked):
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
class BusSettings(Checked):
    """What carries messages between nodes."""

    _schema: ClassVar = schema.BusSchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings(Checked):
    """Where the state of rooms and users is kept."""

    _schema: ClassVar = schema.StateSchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings(Checked):
    """Where rooms keep their messages."""

    _schema: ClassVar = schema.HistorySchema

    kind: str = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineSettings(Checked):
    """What is kept for users who are away, and where. Limits are for each user."""

    _schema: ClassVar = schema.OfflineSchema

    kind: str = "none"
    """A place for other people's messages is the operator's to choose."""

    path: str | None = None
    """For ``sqlite``: the file, which is made if it is not there."""

    default: str = "drop"
    """What becomes of a message whose options don't say: ``store`` or ``drop``. A message
    that is stored has to be acked, which costs an answer of each client."""

    max_messages: int = MAX_MESSAGES
    max_bytes: int = MAX_BYTES
    max_age: Seconds = MAX_AGE

    def limits(self) -> dict[str, Any]:
        """Return what the adapters take."""
        return {
            "max_messages": self.max_messages,
            "max_bytes": self.max_bytes,
            "max_age": self.max_age,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings(Checked):
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

    algorithms: Collection[str] = ()
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
class MetricsSettings(Checked):
    """Who counts."""

    _schema: ClassVar = schema.MetricsSchema

    kind: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings(Checked):
    """How log lines look: ``text`` for people, ``json`` for collectors."""

    _schema: ClassVar = schema.LoggingSchema

    kind: str = "text"
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings(Checked):
    """How much one user may send; who has no user id is known by the address."""

    _schema: ClassVar = schema.LimitsSchema

    kind: str = ""
    """``memory`` counts in this process, ``none`` not at all. Left out, it is ``memory`` where
    there is a rate: how much is too much, only the application knows."""

    rate: float | None = None
    """Messages per second, on the average, of one user or address."""

    burst: int = 20
    """Messages that may come at once after a pause: a client that comes back joins its
    rooms in one go."""

    messages_per_second: float | None = None
    """The older name of ``rate``."""

    def __post_init__(self) -> None:
        if self.rate is None:
            object.__setattr__(self, "rate", self.messages_per_second)
        if self.kind == "":
            object.__setattr__(self, "kind", "none" if self.rate is None else "memory")
        Checked.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings(Checked):
    """Paths of the certificate chain and its key in PEM; without them, no TLS."""

    _schema: ClassVar = schema.TlsSchema

    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return what the server listens with, from the files as they are now.

        Raises ``SettingsError`` if they are of no use.
        """
        if self.cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # A key with a passphrase must fail here, not ask for it on a terminal.
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or error.strerror
            if isinstance(error, ssl.SSLError) and not error.reason:  # "PEM lib", say
                why = "one is not in PEM, or the key has a passphrase"
            raise SettingsError([f"tls.cert and tls.key are of no use: {why}"]) from None
        return context
