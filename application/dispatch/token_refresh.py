"""A new token for an open connection: ``system:refresh`` (protocol.md, "Reserved topics").

A refusal is answered to the client and logged for the operator, as with a handshake. The log
is throttled, because a client may retry without end.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import Any

from eyewall.application.concurrency.tasks import is_end
from eyewall.application.connections.registry import Connections
from eyewall.application.connections.token_expiry import TokenExpiry
from eyewall.application.dispatch.command_fields import field_of, object_of, rfc3339
from eyewall.application.hub.hub import Context
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import LogThrottle
from eyewall.application.ports.plugins import Authenticator, Logger, method
from eyewall.application.ports.redaction import hint_of, trace_without
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import (
    ConnectionClosed,
    Forbidden,
    Refused,
    Unauthorized,
    Unavailable,
    code_of,
)
from eyewall.domain.handshake import Fields, Handshake, Headers
from eyewall.domain.identity import ConnMeta


class _Declined(Unauthorized):
    """The authenticator returned None: the log names this, the client learns that its token is
    not valid."""

    code = Unauthorized.code


class TokenRefresh:
    """Authenticates the new tokens of open connections."""

    def __init__(
        self,
        *,
        connections: Connections,
        expiry: TokenExpiry,
        authenticator: Authenticator | None,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._connections = connections
        self._expiry = expiry
        self._authenticate = (
            None if authenticator is None else method(authenticator, "authenticate")
        )
        self._clock = clock
        self._logger = logger
        self._throttle = LogThrottle()

    async def refresh(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Replace the token of a connection: sets its roles and ``expires_at``, and returns the
        data of the ack.

        Raises ``Unauthorized``, ``Forbidden`` for another user's token, ``ConnectionClosed``,
        or the authenticator's ``Refused`` or ``Unavailable``.
        """
        token = field_of(object_of(msg), "token", str, None)
        try:
            meta = await self._ask(ctx, token)
        except (Refused, Unavailable) as error:
            # The answer is sent before the log is written.
            asyncio.get_running_loop().call_soon(partial(self._tell, ctx, error, token))
            raise
        if not ctx.conn.is_open:
            raise ConnectionClosed("it ended meanwhile")
        self._connections.set_meta(ctx.conn, {"expires_at": meta.expires_at, "roles": meta.roles})
        self._expiry.watch(ctx.conn)
        return {"expires_at": None if meta.expires_at is None else rfc3339(meta.expires_at)}

    async def _ask(self, ctx: Context, token: str) -> ConnMeta:
        if self._authenticate is None:
            raise Unauthorized("there is nothing to refresh")
        handshake = Handshake(
            query=Fields({"token": token}),
            headers=Headers({"Authorization": f"Bearer {token}"}),
            ip=ctx.meta.ip,
        )
        try:
            found: Any = self._authenticate(handshake)
            meta: ConnMeta | None = await found if inspect.isawaitable(found) else found
        except (Refused, Unavailable):
            raise
        except BaseException as error:
            if is_end(error) or (text := _without(error, token)) is None:
                raise
            raise RuntimeError(f"the authenticator failed: {text}") from None
        if meta is None:
            raise _Declined("the token is not valid")
        if meta.user_id != ctx.user_id:
            raise Forbidden("the token is another user's")
        return meta

    def _tell(self, ctx: Context, error: Refused | Unavailable, token: str) -> None:
        more: dict[str, Any] | None = self._throttle.next(self._clock.now())
        if more is None:
            return
        declined = isinstance(error, _Declined)
        hint = "the authenticator returned None" if declined else hint_of(error, [token])
        if hint is not None:
            more["hint"] = hint
        self._logger.info(
            "refresh_refused",
            reason=code_of(error),
            user_id=ctx.user_id,
            conn_id=ctx.conn.id,
            **more,
        )


def _without(error: BaseException, token: str) -> str | None:
    """Return the traceback of ``error`` with the token masked; None if the token is not in it."""
    try:
        return trace_without(error, [token])
    except BaseException:  # noqa: BLE001  (an application's exception may fail to print)
        return type(error).__name__
