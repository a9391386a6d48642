"""TODO"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from eyewall.application.ports.plugins import MaybeAwaitable


class Subscription(Protocol):
    """Stands until it is closed."""

    def close(self) -> MaybeAwaitable[None]:
        """Stop receiving."""


class PubSub(Protocol):
    """Carries bytes between nodes.

    * what is published on a channel reaches every subscription that stands, at most
      once; the publisher's own too;
    * payloads of one sender on one channel arrive in the order they were published;
      across senders or channels nothing is promised;
    * ``subscribe`` returns when the subscription stands;
    * the handler is plain and is called on the event loop of its subscriber;
    * publishing where nobody listens is not an error; an engine that is away is
      ``Unavailable``.
    """

    def publish(self, channel: str, payload: bytes) -> MaybeAwaitable[None]:
        """Send ``payload`` to whoever listens on ``channel``."""

    def subscribe(
        self, channel: str, handler: Callable[[bytes], None]
    ) -> MaybeAwaitable[Subscription]:
        """Have ``handler`` called with what is published on ``channel`` from now on."""


@runtime_checkable
class CountsSubscribers(Protocol):
    """A bus that knows, without asking around, who listens. Optional."""

    def listeners(self, channel: str) -> int: ...
