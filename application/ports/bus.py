"""The message bus between the nodes: publish and subscribe.

The docstring of ``PubSub`` is its contract; ``eyewall.testing.contracts`` holds adapters to
it. ``stores`` says what holds for every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from eyewall.application.ports.plugins import MaybeAwaitable


class Subscription(Protocol):
    """One subscription to a channel, active until it is closed."""

    def close(self) -> MaybeAwaitable[None]:
        """Stop receiving. Raises ``Unavailable``."""


class PubSub(Protocol):
    """Carries bytes between nodes.

    * a payload that is published on a channel reaches every active subscription at most
      once, including the publisher's own;
    * payloads of one sender on one channel arrive in FIFO order; the order across senders
      or channels is undefined;
    * ``subscribe`` returns when the subscription is active;
    * the handler is a plain function, called on the event loop of its subscriber;
    * publishing on a channel without subscribers is no error;
    * both methods raise ``Unavailable`` when the engine can't be reached.
    """

    def publish(self, channel: str, payload: bytes) -> MaybeAwaitable[None]:
        """Send ``payload`` to the subscribers of ``channel``."""

    def subscribe(
        self, channel: str, handler: Callable[[bytes], None]
    ) -> MaybeAwaitable[Subscription]:
        """Call ``handler`` with each payload that is published on ``channel`` from now on."""


@runtime_checkable
class CountsSubscribers(Protocol):
    """A bus that can count the subscribers of a channel without a request. Optional."""

    def listeners(self, channel: str) -> int:
        """Return how many subscriptions the channel has."""
