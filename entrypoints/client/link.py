"""One connection: its handshake, its reader, writer and heartbeat, and how it ended.

The close codes are those of docs/protocol.md: a client reconnects after 1001, 1006, 1011 to
1013 and 4000 to 4499, and not after any other. After 4504 (as after HTTP 401) it is refused,
and does not reconnect until it has another token.

Rules of this file:

1. The reader never waits: it passes each frame on at once.
2. A connection without a pong is cut only after this process could read for that long: a
   process that stood still (a laptop that was closed) reads first.
3. One task writes. The connection's own frames (acks, its own requests) go first; the
   application's messages follow once the session is resumed, and until the server drains.
4. Every failed handshake is an ``Ending``, whose text shows no secret.
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
"""Seconds that a server can ask a client to wait. A drain spreads 200 clients over a second,
so a million of them over more than an hour; a larger number is a mistake."""

MAX_OWN_FRAMES: Final = 1024
"""Acks that wait to be written: one for each id that is remembered. A server that causes
more of them without reading any does not get the rest."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds for a close: waiting messages are written, and the server answers."""

ABNORMAL_CLOSURE: Final = 1006
MESSAGE_TOO_BIG: Final = 1009

PONG_CHECKS: Final = 10
"""Steps in which a pong is awaited."""

_LOGIN: Final = "authorization"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, and what follows.

    ``comes_back``: the client reconnects. ``wait``: the seconds that the server asked for;
    ``exact``: without a back-off besides, since the server has spread them over its clients.
    ``stale``: the token has expired or was refused.
    """

    error: EyewallError
    comes_back: bool = True
    wait: float | None = None
    exact: bool = False
    stale: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether the client was refused: only another token may help."""
        return not self.comes_back and is_refusal(self.error)


def is_refusal(error: EyewallError | None) -> bool:
    """Return whether a client with this error was refused, as opposed to: no server there."""
    return isinstance(error, (Unauthorized, Forbidden))


def comes_back(code: int) -> bool:
    """Return whether a client reconnects by itself after a close with this code."""
    return code in (1001, 1006) or 1011 <= code <= 1013 or 4000 <= code <= 4499


def ending_of_close(code: int, reason: str, reconnect_in: float | None = None) -> Ending:
    """Return the ending of a close; ``reconnect_in`` are the seconds of ``system:draining``."""
    text = f"closed with {code} {reason}".rstrip()
    if code in (AUTH_FAILED, TOKEN_EXPIRED):
        return Ending(Unauthorized(f"not let in: {text}"), comes_back(code), stale=True)
    wait = reconnect_in if code == SERVICE_RESTART else None
    return Ending(ConnectionClosed(text), comes_back(code), wait=wait, exact=wait is not None)


def ending_of_refusal(status: int, headers: Mapping[str, str]) -> Ending:
    """Return the ending of a handshake that was answered with another status than 101."""
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
    """Return the seconds that a server asked for, bounded; None if ``value`` is no number.

    The date that a ``Retry-After`` may hold is ignored: no 503 of this kind has one.
    """
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return None
    return min(float(value), MAX_REQUESTED_WAIT)


class Ended(Exception):
    """The connection could not be made, or has ended."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(str(ending.error))
        self.ending = ending


class Link:
    """A connection after its ``system:welcome``. ``heartbeat``: seconds between two pings."""

    def __init__(
        self, socket: ClientConnection, welcome: Mapping[str, Any], heartbeat: float
    ) -> None:
        self.welcome = welcome
        self._heartbeat = heartbeat
        self.reconnect_in: float | None = None
        """The seconds of ``system:draining``; None while the server does not drain."""
        self._socket = socket
        self._has_ended = False
        self._own: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._outbox: Outbox | None = None

    @property
    def session(self) -> str | None:
        """The name of the session that began with this connection."""
        name = self.welcome.get("session")
        return name if isinstance(name, str) else None

    # --- writing

    def post(self, frame: bytes) -> bool:
        """Queue a frame of the connection itself; False if it has ended or too many wait."""
        if self._has_ended or len(self._own) >= MAX_OWN_FRAMES:
            return False
        self._own.append(frame)
        self._stir()
        return True

    def serve(self, outbox: Outbox) -> None:
        """From now on write the application's messages, too."""
        self._outbox = outbox
        outbox.set_waker(self._stir)
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _next(self) -> bytes | None:
        if self._own:
            return self._own.popleft()
        if self._outbox is None or self.reconnect_in is not None:
            return None  # a server that drains refuses new messages: the next one gets them
        item = self._outbox.pop()
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
        """Read and write until the connection ends; returns how it ended."""
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
            self._has_ended = True
            self._idle.set()
            for task in (writer, keeper):
                task.cancel()
            await asyncio.wait([writer, keeper])
            for task in (writer, keeper):
                if not task.cancelled():
                    task.exception()  # the reader has raised the same
            _cut(self._socket)

    # --- heartbeat

    async def _keep_alive(self) -> None:
        """Ping, and cut the connection if no pong comes in time."""
        while True:
            await asyncio.sleep(self._heartbeat)
            ping = asyncio.create_task(self._ping(), name="eyewall client ping")
            try:
                # A step may end late: the frames that have come are read before the next.
                for _ in range(PONG_CHECKS):
                    await asyncio.wait([ping], timeout=self._heartbeat / PONG_CHECKS)
                    if ping.done():
                        break
                else:
                    _cut(self._socket)
                    return
                await ping
            finally:
                ping.cancel()

    async def _ping(self) -> None:
        await (await self._socket.ping())

    # --- the end

    async def flush(self) -> None:
        """Return when all waiting frames are written, or after ``CLOSE_TIMEOUT``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._idle.wait()

    async def close(self) -> None:
        """Close the connection; ``run`` returns then."""
        await self._socket.close()


class _Socket(ClientConnection):
    """Follows no redirect: the credentials are not meant for its target."""

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().handshake(*args, **kwargs)
        except InvalidStatus as error:
            waits = error.response.headers.get_all("Retry-After")
            headers = {"Retry-After": waits[0]} if waits else {}
            raise Ended(ending_of_refusal(error.response.status_code, headers)) from None


class _NoDebug(logging.LoggerAdapter[logging.Logger]):
    """Suppresses the debug lines of websockets: they show all headers and frames, and with
    them the token."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (logging's own name)
        return level > logging.DEBUG and super().isEnabledFor(level)


_LOGGER = _NoDebug(logging.getLogger("websockets.client"), {})


async def dial(address: Address, token: str | None) -> Link:
    """Connect, and read the welcome; raises only ``Ended``."""
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
                ping_interval=None,  # ``Link`` pings itself
                close_timeout=min(CLOSE_TIMEOUT, address.heartbeat),
                max_size=address.max_message_size,
                create_connection=_Socket,
                logger=_LOGGER,
                **secured,
            )
            link = Link(socket, await _welcome(socket), address.heartbeat)
            socket = None  # the link owns it now
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
    except Exception as error:  # noqa: BLE001  (any failure of a server, a proxy or a library)
        said = address.redact(error, token) or type(error).__name__
        raise Ended(Ending(Unavailable(f"no connection: {said}"))) from None
    finally:
        if socket is not None:
            _cut(socket)


def _cut(socket: ClientConnection) -> None:
    """Close the TCP connection now, if it is still open.

    In Python 3.11.2 (Debian 12) a TLS transport that was closed twice has no protocol any
    more, and its ``abort()`` raises instead of doing nothing.
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
    """Return the ending of the server's close frame; without one it is 1006, whatever code
    this side has sent. The exception is 1009: a message that is too large would come again."""
    close = error.rcvd
    if close is None and error.sent is not None and error.sent.code == MESSAGE_TOO_BIG:
        close = error.sent
    if close is None:
        return ending_of_close(ABNORMAL_CLOSURE, "")
    return ending_of_close(close.code, close.reason, reconnect_in)


def _turned_away(error: SocketClosed) -> Ending:
    """Return the ending of a connection that the server closed before the welcome."""
    ending = ending_of_close(ABNORMAL_CLOSURE, "") if error.rcvd is None else _ending(error)
    wrong: type[Unauthorized | Unavailable | Forbidden] = Forbidden
    if ending.stale:
        wrong = Unauthorized
    elif ending.comes_back:
        wrong = Unavailable
    return replace(ending, error=wrong(str(ending.error)))
