"""One live connection: a socket, what is written to it, and how it ended.

Rules of this file:

1. Reading never waits for anybody: each frame is handed on at once.
2. A connection is given up for its silence only after so much time in which this side could
   hear: one that stood still (a laptop that was closed) reads first.
3. One task writes. What belongs to this connection (acks, its own requests) goes first;
   the application's messages follow when they may.
3. Whatever keeps a connection from being made is an ``Ending``, and its text shows no
   secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed as SocketClosed
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from eyewall.client import wire
from eyewall.client.address import Address
from eyewall.client.outbox import Outbox
from eyewall.domain.errors import (
    ConnectionClosed,
    EyewallError,
    Forbidden,
    InvalidEnvelope,
    Unauthorized,
    Unavailable,
)

TOKEN_EXPIRED: Final = 4401
AUTH_FAILED: Final = 4504
SERVICE_RESTART: Final = 1012

MAX_REQUESTED_WAIT: Final = 3600.0
"""Seconds that a server can ask a client to stay away. A drain spreads 200 clients over a
second, so a million of them over more than an hour; whoever says more is mistaken."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended, and what is to be done.

    ``wait`` are the seconds that the server asked for, if it did; ``exact`` says that
    they are this client's own, with the spread already in them. ``stale`` says that the
    token is of no use (any more).
    """

    error: EyewallError
    comes_back: bool = True
    wait: float | None = None
    exact: bool = False
    stale: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether it was not let in: another token may help, and nothing else does."""
        return not self.comes_back and is_refusal(self.error)


def is_refusal(error: EyewallError | None) -> bool:
    """Return whether it says that a client was not let in, as opposed to: no server there."""
    return isinstance(error, (Unauthorized, Forbidden))


def comes_back(code: int) -> bool:
    """Return whether a client returns by itself after a close with this code."""
    return code in (1001, 1006) or 1011 <= code <= 1013 or 4000 <= code <= 4499


def ending_of_close(code: int, reason: str, reconnect_in: float | None = None) -> Ending:
    """Return what a close means; ``reconnect_in`` is what ``system:draining`` had said."""
    text = f"closed with {code} {reason}".rstrip()
    if code in (AUTH_FAILED, TOKEN_EXPIRED):
        return Ending(Unauthorized(f"not let in: {text}"), comes_back(code), stale=True)
    asked = reconnect_in if code == SERVICE_RESTART else None
    return Ending(ConnectionClosed(text), comes_back(code), wait=asked, exact=asked is not None)


def ending_of_refusal(status: int, headers: Mapping[str, str]) -> Ending:
    """Return what the HTTP answer to a handshake means, if it is not 101."""
    if status == 401:
        error: EyewallError = Unauthorized("the server answers 401: authentication failed")
        return Ending(error, comes_back=False, stale=True)
    if status == 403:
        return Ending(Forbidden("the server answers 403"), comes_back=False)
    moved = ", a redirect: give the address that it leads to" if 300 <= status < 400 else ""
    return Ending(
        Unavailable(f"the server answers {status}{moved}"),
        wait=requested_wait(headers.get("Retry-After")),
    )


def requested_wait(value: object) -> float | None:
    """Return seconds that the other side asked for; None for what is no such number.

    A ``Retry-After`` may be a date, which nobody sends with a 503 of this kind: it is
    passed over.
    """
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return None
    return min(float(value), MAX_REQUESTED_WAIT)


MAX_OWN_FRAMES: Final = 1024
"""Acks that wait to be written: one for each id that is remembered. A server that makes
more of them without reading any does without."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds for a close: what waits is written, and the server answers."""

ABNORMAL_CLOSURE: Final = 1006

PONG_CHECKS: Final = 10
"""Parts in which a pong is waited for."""
MESSAGE_TOO_BIG: Final = 1009

_LOGIN: Final = "authorization"


class Ended(Exception):
    """There is no connection, or none any more."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(str(ending.error))
        self.ending = ending


class Link:
    """A connection that has been welcomed."""

    def __init__(
        self, socket: ClientConnection, welcome: Mapping[str, Any], heartbeat: float
    ) -> None:
        self.welcome = welcome
        self._heartbeat = heartbeat
        self.reconnect_in: float | None = None
        """What ``system:draining`` asked for."""
        self._socket = socket
        self._own: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._outbox: Outbox | None = None

    @property
    def session(self) -> str | None:
        """The name of the session that began with it."""
        name = self.welcome.get("session")
        return name if isinstance(name, str) else None

    # --- writing

    def post(self, frame: bytes) -> bool:
        """Write a frame of this connection's own soon; False if too many wait."""
        if len(self._own) >= MAX_OWN_FRAMES:
            return False
        self._own.append(frame)
        self._stir()
        return True

    def serve(self, outbox: Outbox) -> None:
        """From now on write the application's messages too."""
        self._outbox = outbox
        outbox.set_waker(self._stir)
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _next(self) -> bytes | None:
        if self._own:
            return self._own.popleft()
        item = None if self._outbox is None else self._outbox.pop()
        return None if item is None else item.frame_to_write()

    async def _write(self) -> None:
        while True:
            frame = self._next()
            if frame is not None:
                await self._socket.send(frame.decode())
            else:
                self._idle.set()
                await self._wake.wait()
                self._wake.clear()

    # --- reading

    async def run(self, received: Callable[[str], None]) -> Ending:
        """Read and write until the connection ends; return how."""
        writer = asyncio.create_task(self._write(), name="eyewall client writer")
        keeper = asyncio.create_task(self._keep_alive(), name="eyewall client heartbeat")
        try:
            while True:
                frame = await self._socket.recv()
                received(frame if isinstance(frame, str) else "")
        except SocketClosed as error:
            return _ending(error, self.reconnect_in)
        finally:
            if self._outbox is not None:
                self._outbox.set_waker(None)
            self._idle.set()
            for task in (writer, keeper):
                task.cancel()
            await asyncio.wait([writer, keeper])
            for task in (writer, keeper):
                if not task.cancelled():
                    task.exception()  # the reader has seen the same
            _cut(self._socket)

    # --- signs of life

    async def _keep_alive(self) -> None:
        """Ping, and cut a connection that does not answer."""
        while True:
            await asyncio.sleep(self._heartbeat)
            asked = asyncio.create_task(self._ping(), name="eyewall client ping")
            try:
                # However late a step ends, it is one: what has come is read before the next.
                for _ in range(PONG_CHECKS):
                    await asyncio.wait([asked], timeout=self._heartbeat / PONG_CHECKS)
                    if asked.done():
                        break
                else:
                    _cut(self._socket)
                    return
                await asked
            finally:
                asked.cancel()

    async def _ping(self) -> None:
        await (await self._socket.ping())

    # --- the end

    async def flush(self) -> None:
        """Return when all that waits is written, or the time for a goodbye is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._idle.wait()

    async def close(self) -> None:
        """Close the connection; ``run`` returns then."""
        await self._socket.close()


class _Socket(ClientConnection):
    """Follows no redirect: where one leads is not whom the credentials are meant for."""

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().handshake(*args, **kwargs)
        except InvalidStatus as error:
            waits = error.response.headers.get_all("Retry-After")
            headers = {"Retry-After": waits[0]} if waits else {}
            raise Ended(ending_of_refusal(error.response.status_code, headers)) from None


class _NoDebug(logging.LoggerAdapter[logging.Logger]):
    """Passes on all but the debug lines of websockets: they show every header and frame,
    and so the token."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (logging's own name)
        return level > logging.DEBUG and super().isEnabledFor(level)


_LOGGER = _NoDebug(logging.getLogger("websockets.client"), {})


async def dial(address: Address, token: str | None) -> Link:
    """Connect and take the welcome; raises ``Ended``, and nothing else."""
    headers = dict(address.headers)
    secured: dict[str, Any] = {} if address.ssl is None else {"ssl": address.ssl}
    if token is not None:
        headers = {name: value for name, value in headers.items() if name.lower() != _LOGIN}
        headers["Authorization"] = f"Bearer {token}"
    socket: ClientConnection | None = None
    try:
        async with asyncio.timeout(address.timeout):
            socket = await connect(
                address.url,
                subprotocols=[Subprotocol(wire.SUBPROTOCOL)],
                additional_headers=headers,
                open_timeout=None,
                ping_interval=None,  # ``Link`` does it, with more patience
                close_timeout=min(CLOSE_TIMEOUT, address.heartbeat),
                max_size=address.max_message_size,
                create_connection=_Socket,
                logger=_LOGGER,
                **secured,
            )
            link = Link(socket, await _welcome(socket), address.heartbeat)
            socket = None  # it is the link's now
            return link
    except Ended:
        raise
    except SocketClosed as error:
        raise Ended(_turned_away(error)) from None
    except InvalidEnvelope as error:
        said = address.redact(error, token)
        raise Ended(Ending(Unavailable(f"no eyewall answers there: {said}"))) from None
    except TimeoutError:
        raise Ended(Ending(Unavailable("the server did not answer in time"))) from None
    except Exception as error:  # noqa: BLE001  (whatever a server, a proxy or a library thinks of)
        said = address.redact(error, token) or type(error).__name__
        raise Ended(Ending(Unavailable(f"no connection: {said}"))) from None
    finally:
        if socket is not None:
            _cut(socket)


def _cut(socket: ClientConnection) -> None:
    """Close the TCP connection now, if that has not happened yet.

    In Python 3.11.2, which is Debian 12's, a TLS transport that was closed twice has let go of
    its protocol, and its ``abort()`` raises instead of doing nothing.
    """
    with contextlib.suppress(AttributeError):
        socket.transport.abort()


async def _welcome(socket: ClientConnection) -> Mapping[str, Any]:
    if socket.subprotocol is None:
        raise InvalidEnvelope(f"the server does not speak {wire.SUBPROTOCOL}")
    message = wire.decode(await socket.recv())
    if message.topic != "system:welcome" or not isinstance(message.data, dict):
        raise InvalidEnvelope("the first message is no welcome")
    return message.data


def _ending(error: SocketClosed, reconnect_in: float | None = None) -> Ending:
    """What the server said. Where it said nothing it is a cut, whatever this side has sent
    (that the bytes made no sense, or that no pong came), but for a message that is too
    large: it would come again."""
    close = error.rcvd
    if close is None and error.sent is not None and error.sent.code == MESSAGE_TOO_BIG:
        close = error.sent
    return (
        ending_of_close(ABNORMAL_CLOSURE, "")
        if close is None
        else ending_of_close(close.code, close.reason, reconnect_in)
    )


def _turned_away(error: SocketClosed) -> Ending:
    """The server closed before the welcome."""
    ending = ending_of_close(ABNORMAL_CLOSURE, "") if error.rcvd is None else _ending(error)
    wrong: type[Unauthorized | Unavailable | Forbidden] = Forbidden
    if ending.stale:
        wrong = Unauthorized
    elif ending.comes_back:
        wrong = Unavailable
    return replace(ending, error=wrong(str(ending.error)))
