"""What a handler gets beside the message: who sent it, and how to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from eyewall.application.connections import Connection
from eyewall.application.threads import current_call
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.errors import Misuse, Unauthorized
from eyewall.domain.identity import ConnMeta, UserId
from eyewall.domain.report import DeliveryReport, SendOptions

if TYPE_CHECKING:
    from eyewall.application.admit import Admission
    from eyewall.application.hub import Hub

T = TypeVar("T")


class Context:
    """One message being handled. Who sent it comes from the connection."""

    __slots__ = (
        "_loop",
        "_state",
        "admission",
        "admitted",
        "conn",
        "hub",
        "message",
        "owner",
        "route",
    )

    def __init__(
        self,
        hub: Hub,
        conn: Connection,
        message: Envelope,
        route: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.hub = hub
        self.conn = conn
        self.message = message
        self.route = route
        """The pattern that matched: bounded in number, so fit for labels."""
        self.owner: ConnMeta | None = None
        """For whom ``auth_required`` or a command has decided that the message may go on;
        None where nobody did."""
        self.admission: Admission | None = None
        """What lets messages through; set by who takes this one in."""
        self.admitted = conn.meta
        """Whom the access controller has let send it."""
        self._loop = loop
        self._state: dict[str, Any] | None = None

    @property
    def user_id(self) -> UserId | None:
        """The user that sent it; None for an anonymous connection."""
        return self.conn.meta.user_id

    @property
    def meta(self) -> ConnMeta:
        """What is known of the connection that sent it, as it is now."""
        return self.conn.meta

    @property
    def state(self) -> dict[str, Any]:
        """What middleware passes on to the handler."""
        if self._state is None:
            self._state = {}
        return self._state

    def check_owner(self) -> None:
        """Raise ``Unauthorized`` if the connection is not, any more, whose it was when the
        message was let through: what was decided for that one is void."""
        owner, meta = self.owner, self.conn.meta
        if owner is None or owner is meta:
            return
        if owner.user_id != meta.user_id or owner.roles != meta.roles:
            raise Unauthorized("who asks this has changed meanwhile: ask again")

    async def admit_again(self) -> None:
        """Where the connection has become another's since the access controller let the
        message through: ask it for that one. Raises ``Forbidden``."""
        if self.admission is None or self.admitted is self.conn.meta:
            return
        waits = self.admission.again(self.conn, self.message, self.admitted)
        if waits is not None:
            await waits
        # Whoever it is by now was let through: nothing waits in between.
        self.admitted = self.conn.meta

    async def send(self, topic: str, event: str = "message", data: Any = None) -> None:
        """Send a message to the connection that sent this one.

        Raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``.
        """
        await self.conn.send(topic, event, data)

    async def send_message(
        self, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send a message to this connection with delivery options; see the report."""
        return await self.hub.deliver(self.conn.id, message, options)

    async def reply(self, data: Any = None) -> None:
        """Send an answer: topic and ``ref`` are the request's.

        Raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``.
        """
        await self.hub.reply(self.conn, self.message, data)

    def from_thread(self, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """From a plain handler's thread, run ``await fn(*args, **kwargs)`` on the loop.

        Blocks the thread; returns the result or raises. Raises ``Misuse`` on the loop
        itself, which would wait for itself for ever.
        """
        if _runs_here(self._loop):
            raise Misuse("from_thread is for plain handlers: await it instead")

        call = current_call()

        async def run() -> T:
            work = fn(*args, **kwargs)
            return await (work if call is None else call.ask(work))

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
