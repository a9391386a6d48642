"""Clients made of a socket and nothing else, one by one or as a crowd."""

from __future__ import annotations

import hashlib
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import msgspec

from tests.certificate import tls_contexts
from tests.faults import support
from tests.faults.support import HANDSHAKE, WITHIN

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_RESET = struct.pack("ii", 1, 0)


def request(query: dict[str, Any], *, session: bool = False, **extra: str) -> bytes:
    """A handshake; in the names of ``extra`` fields an underscore stands for a dash."""
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    fields = {"Host": "localhost", **HANDSHAKE}
    if session:
        fields["Sec-WebSocket-Protocol"] = "eyewall.v1.json"
    fields |= {name.replace("_", "-"): value for name, value in extra.items()}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"GET /ws?{asked} HTTP/1.1", *lines, "", ""]).encode()


def framed(payload: bytes, opcode: int = TEXT) -> bytes:
    """A whole frame from a client; its mask is all zeros, which masks nothing."""
    size = len(payload)
    head = bytes((0x80 | opcode,))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 1 << 16:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


class Peer:
    """A client. It reads when it is told to, and sends what it is told to, right or wrong."""

    def __init__(self, sock: socket.socket, *, keep: bool = True) -> None:
        self.sock = sock
        self.keep = keep
        self.messages: list[dict[str, Any]] = []
        self.pongs: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        """Code and reason of the close frame that came."""
        self.end: str | None = None
        """How the connection ended: ``eof``, ``reset``, in TLS ``alert``, or not yet."""
        self.total = 0
        self.digest = hashlib.blake2b()
        self._left = b""
        self._unsent = b""
        self._lock = threading.RLock()
        """Held for each call of the socket: a crowd reads in a thread of its own while the test
        writes, and OpenSSL crashes when two threads use one connection at once."""

    @classmethod
    def dial(cls, port: int, *, buffer: int | None = None, keep: bool = True) -> Self:
        """Open the TCP connection only; ``buffer`` is its receive buffer, in bytes."""
        sock = socket.socket()
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(WITHIN)
        sock.connect(("127.0.0.1", port))
        if support.over_tls:
            sock = tls_contexts()[1].wrap_socket(sock, server_hostname="localhost")
        return cls(sock, keep=keep)

    @classmethod
    def connect(
        cls,
        port: int,
        *,
        buffer: int | None = None,
        keep: bool = True,
        session: bool = False,
        fields: dict[str, str] | None = None,
        **query: Any,
    ) -> Self:
        """Open the connection; with ``session`` it negotiates a subprotocol.

        ``fields`` go into the request as they are.

        ``keep`` False: the bytes that come are counted and hashed, but not looked at.
        """
        peer = cls.dial(port, buffer=buffer, keep=keep)
        peer.sock.sendall(request(query, session=session, **(fields or {})))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = peer.sock.recv(1)
            assert byte, head
            head += byte
        assert head.startswith(b"HTTP/1.1 101"), head
        peer.sock.setblocking(False)
        return peer

    # --- in

    def read(self, most: int = 256 * 1024) -> bool:
        """Take in what has come, at most so many bytes; False if nothing had."""
        try:
            with self._lock:
                data = self.sock.recv(most)
        except WOULD_BLOCK:
            return False
        except ConnectionResetError:
            self.end = "reset"
            return True
        except ssl.SSLError:
            self.end = "alert"
            return True
        if not data:
            self.end = "eof"
            return True
        self.total += len(data)
        if self.keep:
            self._left = self._parse(self._left + data)
        else:
            self.digest.update(data)
        return True

    def _parse(self, data: bytes) -> bytes:
        at = 0
        while len(data) - at >= 2:
            first, size = data[at], data[at + 1]
            start = at + 2 + {126: 2, 127: 8}.get(size, 0)
            if size > 125:
                size = int.from_bytes(data[at + 2 : start], "big")
            if start + size > len(data):
                break
            self._take(first, data[start : start + size])
            at = start + size
        return data[at:]

    def _take(self, first: int, payload: bytes) -> None:
        assert self.closed is None, "something came behind the close frame"
        if first == 0x80 | TEXT:
            self.messages.append(json.loads(payload))
        elif first == 0x80 | BINARY:
            self.messages.append(msgspec.msgpack.decode(payload))
        elif first == 0x80 | PONG:
            self.pongs.append(payload)
        elif first == 0x80 | CLOSE:
            self.closed = int.from_bytes(payload[:2], "big"), payload[2:].decode()
            self.write(framed(payload[:2], CLOSE))
        else:
            assert first == 0x80 | PING, f"a frame that begins with {first:#x}"
            self.write(framed(payload, PONG))

    @property
    def torn(self) -> bool:
        """Whether the beginning of a frame came without its end."""
        return bool(self._left)

    def of(self, topic: str) -> list[Any]:
        """The payloads of the messages of a topic."""
        return [m.get("data") for m in self.messages if m["topic"] == topic]

    @property
    def answers(self) -> dict[str, str]:
        """What each request got, by its id: ``ok`` or a code. Fails if one got two."""
        found: dict[str, str] = {}
        for message in self.messages:
            if message.get("event") in {"ack", "error"} and "ref" in message:
                assert message["ref"] not in found, f"two answers to {message['ref']}"
                data = message["data"]
                found[message["ref"]] = data.get("code") or data["status"]
        return found

    # --- out

    def write(self, data: bytes) -> None:
        """Send as much as the socket takes; the rest goes with the next ``flush``."""
        with self._lock:
            self._unsent += data
            self.flush()

    def flush(self) -> bool:
        """Send what waits; False if something still does."""
        with self._lock:
            while self._unsent:
                try:
                    self._unsent = self._unsent[self.sock.send(self._unsent) :]
                except WOULD_BLOCK:
                    return False
                except OSError:  # the other side has ended, or this one
                    self._unsent = b""
        return True

    def send(self, **envelope: Any) -> None:
        self.write(framed(json.dumps(envelope).encode()))

    def ask(self, ref: str, topic: str, data: Any = None) -> None:
        """Send a request that is to be acked."""
        self.send(id=ref, topic=topic, data=data, ack=True)

    @property
    def holds_more(self) -> bool:
        """Whether the TLS session has more to read, which the socket does not tell."""
        with self._lock:
            return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    # --- the end

    def shut(self) -> None:
        """Close this direction of the socket, without a word in TLS."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close(self) -> None:
        with self._lock:
            self.sock.close()

    def reset(self) -> None:
        """Break the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Crowd:
    """Many clients that read whatever comes, whenever they are pumped."""

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self.peers: list[Peer] = []
        self._by_fd: dict[int, Peer] = {}
        self._more: set[int] = set()
        self._epoll = select.epoll()
        for peer in peers:
            self.add(peer)

    def add(self, peer: Peer) -> Peer:
        self.peers.append(peer)
        self._by_fd[peer.sock.fileno()] = peer
        self._epoll.register(peer.sock.fileno(), select.EPOLLIN)
        return peer

    def pump(self, wait: float = 0.02) -> None:
        """Read once from everybody who has something, and send what waits."""
        for peer in self.peers:
            peer.flush()
        ready = {fd for fd, _ in self._epoll.poll(0 if self._more else wait, 1024)}
        for fd in ready | self._more:
            peer = self._by_fd[fd]
            peer.read()
            self._more.discard(fd)
            if peer.end is not None:
                self._epoll.unregister(fd)
                peer.close()
            elif peer.holds_more:
                self._more.add(fd)

    def until(self, condition: Callable[[], Any], what: str = "it", within: float = WITHIN) -> None:
        """Pump until ``condition`` is true; fail when it takes too long."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen within {within} s"
            self.pump()

    @contextmanager
    def attentive(self) -> Iterator[Self]:
        """Pump in a thread meanwhile: they read, and answer pings."""
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                self.pump()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.peers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        for peer in self.peers:
            with suppress(OSError):
                peer.close()
