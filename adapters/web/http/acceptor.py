"""Takes connections in from the listening sockets, and bears that it can't.

When the process has no descriptor left (or the kernel no memory), ``accept`` fails and the
connection stays where it was: the loop would find the socket readable again at once, for
ever. So nothing is accepted for a moment; then it is tried again, until others have left.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final

RETRY_DELAY: Final = 1.0
"""Seconds without accepting. Clients wait in the kernel's queue meanwhile."""

ACCEPTS_PER_TURN: Final = 128
"""Connections that are taken in one go: what else there is has its turn in between."""

_CLIENTS_OWN: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPROTO", "EPERM", "EINTR", "ENETDOWN", "ENETUNREACH"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ENOPROTOOPT", "EOPNOTSUPP"),
    )
    if hasattr(errno, name)
)
"""Errors of the one connection that was to be accepted (Linux tells those of its network
here, too): the next may be good."""

Take = Callable[[socket.socket, Any], None]


class Acceptor:
    """Accepts on any number of listening sockets; ``paused`` hears of each pause.

    Whatever else makes ``accept`` fail is taken for a shortage: it can't be waited for, and
    must not be tried in a circle.
    """

    def __init__(self, paused: Callable[[OSError], None]) -> None:
        self._paused = paused
        self._sockets: dict[socket.socket, Take] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sock: socket.socket, take: Take) -> Callable[[], None]:
        """Hand what comes in on ``sock`` to ``take``; what is returned ends that."""
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
                return  # closed meanwhile, by what was done with the one before
            try:
                connection, address = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _CLIENTS_OWN:
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
