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
from dataclasses import replace
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from eyewall.client import wire
from eyewall.client.address import Address
from eyewall.client.endings import Ending, of_close, of_refusal
from eyewall.client.outbox import Outbox
from eyewall.domain.errors import Forbidden, InvalidEnvelope, Unauthorized, Unavailable

MOST_OWN: Final = 1024
"""Acks that wait to be written: one for each id that is remembered. A server that makes
more of them without reading any does without."""

GOODBYE: Final = 5.0
"""Seconds for a close: what waits is written, and the server answers."""

CUT: Final = 1006

STEPS: Final = 10
"""Parts in which a pong is waited for."""
TOO_BIG: Final = 1009

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
        if len(self._own) >= MOST_OWN:
            return False
        self._own.append(frame)
        self._stir()
        return True

    def serve(self, outbox: Outbox) -> None:
        """From now on write the application's messages too."""
        self._outbox = outbox
        outbox.wakes(self._stir)
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _next(self) -> bytes | None:
        if self._own:
            return self._own.popleft()
        item = None if self._outbox is None else self._outbox.pop()
        return None if item is None else item.leave()

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
        except ConnectionClosed as error:
            return _ending(error, self.reconnect_in)
        finally:
            if self._outbox is not None:
                self._outbox.wakes(None)
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
                for _ in range(STEPS):
                    await asyncio.wait([asked], timeout=self._heartbeat / STEPS)
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
            async with asyncio.timeout(GOODBYE):
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
            raise Ended(of_refusal(error.response.status_code, headers)) from None


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
                close_timeout=min(GOODBYE, address.heartbeat),
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
    except ConnectionClosed as error:
        raise Ended(_turned_away(error)) from None
    except InvalidEnvelope as error:
        said = address.discreet(error, token)
        raise Ended(Ending(Unavailable(f"no eyewall answers there: {said}"))) from None
    except TimeoutError:
        raise Ended(Ending(Unavailable("the server did not answer in time"))) from None
    except Exception as error:  # noqa: BLE001  (whatever a server, a proxy or a library thinks of)
        said = address.discreet(error, token) or type(error).__name__
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


def _ending(error: ConnectionClosed, reconnect_in: float | None = None) -> Ending:
    """What the server said. Where it said nothing it is a cut, whatever this side has sent
    (that the bytes made no sense, or that no pong came), but for a message that is too
    large: it would come again."""
    close = error.rcvd
    if close is None and error.sent is not None and error.sent.code == TOO_BIG:
        close = error.sent
    return of_close(CUT, "") if close is None else of_close(close.code, close.reason, reconnect_in)


def _turned_away(error: ConnectionClosed) -> Ending:
    """The server closed before the welcome."""
    ending = of_close(CUT, "") if error.rcvd is None else _ending(error)
    wrong: type[Unauthorized | Unavailable | Forbidden] = Forbidden
    if ending.stale:
        wrong = Unauthorized
    elif ending.comes_back:
        wrong = Unavailable
    return replace(ending, error=wrong(str(ending.error)))
