"""What a hostile client is measured by: its answer, the server's memory, and a witness."""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.clients import Crowd, Peer, framed
from tests.faults.support import MIB, HubProcess, until

GROWTH = 8 * MIB
"""Bytes that the server may grow by, whatever one client does: eight messages of the largest
size. The attacks are many times as large, or would be if they were let."""

DEFLATE = {"Sec_WebSocket_Extensions": "permessage-deflate"}
MSGPACK = {"Sec_WebSocket_Protocol": "eyewall.v1.msgpack"}


class Witness:
    """A client that means well: it asks, and asks again when it was answered."""

    def __init__(self, hub: HubProcess) -> None:
        self.answered = 0
        self._peer = Peer.connect(hub.port, user="witness")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        with Crowd([self._peer]) as crowd:
            for ref in map(str, itertools.count()):
                self._peer.ask(ref, "work:echo")
                while ref not in {message.get("ref") for message in self._peer.messages}:
                    if self._done.is_set():
                        return
                    crowd.pump()
                self._peer.messages.clear()
                self.answered += 1

    def is_answered(self, times: int = 2) -> None:
        """Wait for so many answers that it does not have yet: the second was asked for now."""
        enough = self.answered + times
        until(lambda: self.answered >= enough, "an answer to the witness")

    def __enter__(self) -> Witness:
        self._thread.start()
        self.is_answered()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@contextmanager
def unharmed(hub: HubProcess, growth: int = GROWTH) -> Iterator[Witness]:
    """What happens meanwhile harms nobody but who does it, and leaves nothing behind.

    ``growth``: bytes of memory that the process may keep for itself.
    """
    with Witness(hub) as witness:
        until(lambda: hub.ask("links") == 1, "the witness being alone")
        fds, rss = hub.fds, hub.rss
        yield witness
        witness.is_answered()
        until(lambda: hub.ask("links") == 1, "the end of the hostile ones")
        until(lambda: hub.fds == fds, "their descriptors")
        assert hub.ask("held") == {"queued": 0, "begun": 0}
        grown = hub.rss - rss
        assert grown < growth, f"grown by {grown / MIB:.1f} MiB"
        witness.is_answered()
    until(lambda: hub.ask("links") == 0, "the end of the witness")
    assert hub.complaints == []


def ended(peer: Peer) -> tuple[int, str] | None:
    """Read to the end; returns the close frame's code and reason, if one came."""
    with Crowd([peer]) as crowd:
        crowd.until(lambda: peer.end, "the end")
    return peer.closed


def flooded(peer: Peer, data: bytes, enough: Callable[[], Any]) -> None:
    """Send it again and again, and read what comes, until it is enough."""
    with Crowd([peer]) as crowd:

        def more() -> Any:
            if peer.flush():
                peer.write(data)
            return enough()

        crowd.until(more, "an end of the flood")


def deflated(*pieces: bytes) -> bytes:
    """What they are together, compressed as in a message."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(map(deflater.compress, pieces)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return data[:-4]


def fragment(payload: bytes, first: int = 0) -> bytes:
    """A frame with this first byte: by default one more fragment, but not the last."""
    return bytes((first,)) + framed(payload)[1:]
