"""Accepts connections on the listening sockets, and pauses when descriptors run out.

When the process has no descriptor left, or the kernel no memory, ``accept`` fails and the
connection stays in the kernel's queue. The event loop would report the socket readable again at
once, in a busy loop. So accepting pauses for a moment and is then tried again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final

RETRY_DELAY: Final = 1.0
"""Seconds without accepting. Clients wait in the kernel's queue."""

ACCEPTS_PER_TURN: Final = 128
"""Connections accepted in one iteration of the event loop, which then runs its other
callbacks."""

_CONNECTION_ERRORS: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPROTO", "EPERM", "EINTR", "ENETDOWN", "ENETUNREACH"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ENOPROTOOPT", "EOPNOTSUPP"),
    )
    if hasattr(errno, name)
)
"""Errors of the one connection that was to be accepted, those of its network included, as Linux
reports them: the next connection may be good."""

Take = Callable[[socket.socket, Any], None]


class Acceptor:
    """Accepts on any number of listening sockets. ``paused`` is called for each pause.

    Every other error of ``accept`` counts as a shortage: its end is not reported, and trying
    again at once would be a busy loop.
    """

    def __init__(self, paused: Callable[[OSError], None]) -> None:
        self._paused = paused
        self._sockets: dict[socket.socket, Take] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sock: socket.socket, take: Take) -> Callable[[], None]:
        """Call ``take`` for each connection accepted on ``sock``. Returns a function that stops
        that."""
        self._sockets[sock] = take
        if self._timer is None:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)
        return lambda: self._remove(sock)

    def _remove(self, sock: socket.socket) -> None:
        if self._sockets.pop(sock, None) is None:
            return
        if self._timer is None:
            asyncio.get_running_loop().remove_reader(sock)
        elif not self._sockets:
            self._timer.cancel()
            self._timer = None

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            take = self._sockets.get(sock)
            if take is None:
                return  # removed by the ``take`` of an earlier connection
            try:
                connection, address = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _CONNECTION_ERRORS:
                    continue
                self._pause(error)
                return
            take(connection, address)

    def _pause(self, error: OSError) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.remove_reader(sock)
        self._timer = loop.call_later(RETRY_DELAY, self._resume)
        self._paused(error)

    def _resume(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock, self._accept, sock)
