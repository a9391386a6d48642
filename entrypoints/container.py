"""The composition root: chooses the adapter of each port by setting.

Override a provider to use an adapter of your own:

>>> container = Container(settings=Settings.load())
>>> container.state.override(providers.Singleton(MyState))
>>> server = container.server()
"""

from __future__ import annotations

import importlib
from typing import Any

from dependency_injector import containers, providers

from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.limits.memory import TokenBucketLimiter
from eyewall.adapters.observe.logs import make_logger
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.ports.extras import needs
from eyewall.application.ports.plugins import Authenticator, Limiter, Metrics
from eyewall.application.ports.stores import OfflineStore
from eyewall.server.options import keywords_of
from eyewall.server.server import Server
from eyewall.settings.groups import AuthSettings, LimitSettings, OfflineSettings
from eyewall.settings.schema import known_keys
from eyewall.settings.settings import Settings


def _jwt(auth: AuthSettings) -> Authenticator:
    from eyewall.adapters.auth.jwt import JwtAuthenticator  # noqa: PLC0415  (an extra)

    return JwtAuthenticator(
        auth.jwt_key(),
        algorithms=auth.algorithms,
        audience=auth.audience,
        issuer=auth.issuer,
        leeway=auth.leeway,
        user_claim=auth.user_claim,
        roles_claim=auth.roles_claim,
        tags_claim=auth.tags_claim,
    )


def _prometheus() -> Metrics:
    from eyewall.adapters.observe.prometheus import PrometheusMetrics  # noqa: PLC0415

    return PrometheusMetrics()


def _sqlite(offline: OfflineSettings) -> OfflineStore:
    return SqliteOffline(offline.path or "", **offline.limits())


def _memory(offline: OfflineSettings) -> OfflineStore:
    return MemoryOffline(**offline.limits())


def _limiter(limits: LimitSettings) -> Limiter:
    assert limits.rate is not None, "settings that limit have a rate"
    return TokenBucketLimiter(limits.rate, limits.burst)


_EXTRAS = {"auth.kind": "jwt", "metrics.kind": "prometheus"}
"""Settings whose value is the name of an extra."""
_PARTS = {"jwt": "jwt", "prometheus": "prometheus_client"}
"""The module that each extra brings."""


def check_extras(settings: Settings) -> None:
    """Raise ``ImportError`` naming all missing extras that the settings need."""
    asked = {key: name for key, name in _EXTRAS.items() if settings.value(key) == name}
    missing = {key: name for key, name in asked.items() if not _is_there(_PARTS[name])}
    if missing:
        what = " with ".join(f"{key} = {name}" for key, name in missing.items())
        raise ImportError(needs(what, *missing.values()), name=_PARTS[next(iter(missing.values()))])


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


_KEYWORDS = keywords_of(Server)


def keywords(settings: Settings) -> dict[str, Any]:
    """Return the values of the settings by the keyword of ``Server`` that each sets.

    A setting has the name of its keyword (``lease``). In a group it sets the keyword with both
    names (``ops.port``: ``ops_port``), in the group ``server`` that with its own name
    (``server.start_page``: ``start_page``). Three groups are one value each.
    """
    found: dict[str, Any] = {
        "queue": settings.queue,
        "heartbeat": settings.heartbeat,
        "compression": settings.compression.config(),
    }
    for key in known_keys():
        for keyword in (key.replace(".", "_"), key.removeprefix("server.")):
            if keyword in _KEYWORDS:
                found[keyword] = settings.value(key)
    return found


def _server(settings: Settings, /, **given: Any) -> Server:
    """Build a server; ``given`` are keywords of ``Server``, which override the settings."""
    server = Server(**(keywords(settings) | given))
    server.settings = settings
    return server


class Container(containers.DeclarativeContainer):
    """The adapters of a server, and the server, as providers that ``settings`` choose.

    ``Container(settings=...).server(**overrides)`` is the same as ``Server.from_settings``; the
    overrides are keywords of ``Server``.
    """

    settings = providers.Singleton(Settings.load)

    logger = providers.Singleton(
        make_logger,
        settings.provided.logging.kind,
        settings.provided.logging.level,
    )
    metrics = providers.Selector(
        settings.provided.metrics.kind,
        none=providers.Object(None),
        prometheus=providers.Singleton(_prometheus),
    )
    authenticator = providers.Selector(
        settings.provided.auth.kind,
        none=providers.Object(None),
        static=providers.Singleton(StaticAuthenticator, settings.provided.auth.tokens),
        jwt=providers.Singleton(_jwt, settings.provided.auth),
    )
    limiter = providers.Selector(
        settings.provided.limits.kind,
        none=providers.Object(None),
        memory=providers.Singleton(_limiter, settings.provided.limits),
    )
    pubsub = providers.Selector(
        settings.provided.bus.kind,
        memory=providers.Singleton(MemoryPubSub),
    )
    state = providers.Selector(
        settings.provided.state.kind,
        memory=providers.Singleton(MemoryState),
    )
    history = providers.Selector(
        settings.provided.history.kind,
        memory=providers.Singleton(MemoryHistory),
    )
    offline = providers.Selector(
        settings.provided.offline.kind,
        none=providers.Object(None),
        memory=providers.Singleton(_memory, settings.provided.offline),
        sqlite=providers.Singleton(_sqlite, settings.provided.offline),
    )
    server = providers.Singleton(
        _server,
        settings,
        logger=logger,
        metrics=metrics,
        authenticator=authenticator,
        limiter=limiter,
        pubsub=pubsub,
        state=state,
        history=history,
        offline=offline,
    )
