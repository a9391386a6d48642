"""Who bears the loads: the floor in C, the hub, and its peers, each as its own page tells.

To add a peer, write a server that does what ``serving.py`` describes and name it here.
"""

from __future__ import annotations

from dataclasses import replace

from tests.performance.model import Subject

EVERYTHING = (
    "the public API, all defaults (registry, rooms, stats, heartbeat), "
    "an authenticator, an access controller, two middleware"
)
SHARED = "no pings, no authentication"


def hub(
    *arguments: str,
    name: str = "hub",
    title: str = "eyewall",
    besides: str = "",
    expect: str = '"status":"ok"',
    **generator: object,
) -> Subject:
    return Subject(
        name=name,
        title=title,
        command=("python", "-m", "tests.performance.hub_server", *arguments),
        expect=expect,
        setup=EVERYTHING + (f"; {besides}" if besides else ""),
        own=True,
        generator=generator,
    )


def tornado(
    path: str,
    title: str,
    what: str,
    *arguments: str,
    name: str = "tornado",
    besides: str = "no compression",
    answer: str = '"ref":"',
    expect: str = "",
    **generator: object,
) -> Subject:
    return Subject(
        name=name,
        title=title,
        command=("python", "-m", "tests.performance.tornado_server", *arguments),
        path=path,
        setup=f"{what}; `set_nodelay(True)`, {besides}, {SHARED}",
        answer=answer,
        expect=expect,
        generator=generator,
    )


def among(subject: Subject, members: int, title: str) -> Subject:
    """Return the same subject with so many members, under a name of its own."""
    return replace(
        subject,
        name=f"{subject.name}-{members}",
        title=f"{subject.title}, {title}",
        clients=members,
    )


C_SEND = Subject(
    name="floor",
    title="C `send()`",
    command=("floor", "{clients}"),
    setup="a bare loop over the sockets: no registry, no reading, the frame is made once",
)
C_SENDMSG = replace(
    C_SEND,
    title="C `sendmsg()`",
    setup="a bare loop over the sockets, one call with all frames for each",
)

ROOM = "a set of handlers, `write_message` of one string to each"
TORNADO_ROOM = tornado("/room", "Tornado `write_message`", ROOM)
TORNADO_ROOM_TLS = tornado("/room", "Tornado over TLS", ROOM, "--tls", "{certificate}", tls=True)
TORNADO_ROOM_DEFLATE = tornado(
    "/room",
    "Tornado, permessage-deflate",
    ROOM,
    "--deflate",
    besides="`get_compression_options` returning an empty dict",
    deflate=True,
)
ECHO = "`on_message` hands what it gets to `write_message`, unread"
TORNADO_ECHO = tornado("/echo", "Tornado, bare echo", ECHO, answer='"id":"')
TORNADO_CHAT = tornado(
    "/chat?user=u%06u",
    "Tornado, json and `write_message`",
    "a dict of sets of handlers, `json`, `write_message` of one string to each",
    expect='"status":"ok"',
)
TORNADO_BARE = tornado("/echo", "Tornado, bare handler", "a handler without state")
TORNADO_BARE_TLS = tornado(
    "/echo",
    "Tornado over TLS, bare handler",
    "a handler without state",
    "--tls",
    "{certificate}",
    tls=True,
)
TORNADO_BARE_DEFLATE = replace(
    tornado(
        "/echo",
        "Tornado, permessage-deflate, 2,000 clients",
        "a handler without state",
        "--deflate",
        besides="`get_compression_options` returning an empty dict",
        deflate=True,
    ),
    clients=2000,
)

WEBSOCKETS = Subject(
    name="websockets",
    title="websockets",
    command=("python", "-m", "tests.performance.websockets_server"),
    answer='"id":"',
    setup=f"on uvloop, `compression=None`, `broadcast` to a room; {SHARED}",
    needs=("websockets", "uvloop"),
)
AIOHTTP = replace(
    WEBSOCKETS,
    name="aiohttp",
    title="aiohttp",
    command=("python", "-m", "tests.performance.aiohttp_server"),
    setup="on uvloop, with its C extensions, `compress=False`, no access log, `send_str` of "
    f"one string to each in a room; {SHARED}",
    needs=("aiohttp", "uvloop"),
)
PICOWS = replace(
    WEBSOCKETS,
    name="picows",
    title="picows",
    command=("python", "-m", "tests.performance.picows_server"),
    setup=f"on uvloop, its core API, a bare loop over the transports in a room; {SHARED}",
    needs=("picows", "uvloop"),
)
PICOWS_ROOM = replace(PICOWS, path="/room")
SOCKETIO = replace(
    WEBSOCKETS,
    name="socketio",
    title="python-socketio",
    command=("python", "-m", "tests.performance.socketio_server"),
    path="/socket.io/?EIO=4&transport=websocket",
    setup="an ASGI application on uvicorn with uvloop, httptools and websockets, WebSocket "
    "transport only, no compression, `async_handlers=False`, `emit` to a room; its own "
    "protocol and pings, no authentication",
    needs=("socketio", "uvicorn", "httptools", "uvloop"),
    generator={"socketio": True, "prefix": '42["ask",', "suffix": "]"},
)


def peers(path: str) -> tuple[Subject, ...]:
    """Return all but Tornado, at ``path`` if they have one."""
    plain = tuple(replace(peer, path=path) for peer in (WEBSOCKETS, AIOHTTP, PICOWS))
    return (*plain, SOCKETIO)


EYEWALL_SERVE = Subject(
    name="hub",
    title="`eyewall serve`",
    command=("python", "-m", "eyewall", "serve", "--port", "{port}"),
    setup="without an application, all defaults",
    own=True,
    announces=False,
)
