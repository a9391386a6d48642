"""The use cases that the hub calls, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from eyewall.application.belongings import Belongings
from eyewall.application.connections import Connection, Connections
from eyewall.application.deliveries import Deliveries
from eyewall.application.failures import Failures
from eyewall.application.fanout import Audiences, FanOut
from eyewall.application.histories import Histories
from eyewall.application.hooks import Hooks
from eyewall.application.messages import Messages
from eyewall.application.moderate import Moderator
from eyewall.application.needs import NodeConfig, Ports
from eyewall.application.offline import Offline
from eyewall.application.operate import Operations
from eyewall.application.ports import Logger
from eyewall.application.presences import Presences
from eyewall.application.publish import Publisher
from eyewall.application.retries import Retries
from eyewall.application.stats import Stats
from eyewall.domain.envelope import Envelope
from eyewall.domain.identity import ConnMeta


class Routing(Protocol):
    """Registers handlers and middleware; ``Hub`` has their types."""

    def use(self, *middleware: Any) -> None: ...

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Any,
        version: str | None = None,
        ordering_key: Callable[..., Any] | None = None,
    ) -> None: ...


class AuthorizesAgain(Protocol):
    """Asks the access controller once more, for a connection whose user has changed."""

    def again(
        self, conn: Connection, message: Envelope, meta: ConnMeta
    ) -> Awaitable[None] | None: ...


class UseCases(Protocol):
    """The use cases of one node, as far as the hub calls them."""

    config: NodeConfig
    ports: Ports
    logger: Logger
    stats: Stats
    hooks: Hooks
    failures: Failures
    connections: Connections
    audiences: Audiences
    fanout: FanOut
    publisher: Publisher
    histories: Histories
    moderator: Moderator
    presences: Presences
    messages: Messages
    deliveries: Deliveries
    offline: Offline
    retries: Retries
    operations: Operations
    belongings: Belongings

    @property
    def router(self) -> Routing: ...
