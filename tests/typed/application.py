"""An application as a user writes it, with plain strings: held to ``mypy --strict``.

Never run. Each public name is used once, as the documentation has it, and what comes out is
asked for its type where that is a promise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import marshmallow
import msgspec
import tornado.web
from marshmallow import fields

import eyewall
from eyewall import (
    AccessController,
    Acker,
    AckOptions,
    AckResult,
    AckTimeout,
    Authenticator,
    BackgroundTask,
    BatchDeliveryReport,
    Codec,
    CompressionConfig,
    Connection,
    ConnectionClosed,
    ConnId,
    ConnMeta,
    Context,
    DeliveryReport,
    DeliveryStatus,
    DisconnectReason,
    DropPolicy,
    Envelope,
    EyewallError,
    Failure,
    FailureReason,
    Forbidden,
    Handler,
    HandlerNotFound,
    Handshake,
    HeartbeatConfig,
    HistoryPage,
    HistoryStore,
    Hub,
    HubStats,
    InvalidEnvelope,
    JoinForbidden,
    JoinOptions,
    Limiter,
    Logger,
    MarshmallowValidator,
    Member,
    Membership,
    MemoryPubSub,
    MemoryState,
    Message,
    MessageId,
    Metrics,
    Middleware,
    Misuse,
    Nacked,
    NodeId,
    NotAMember,
    OfflineStore,
    Overloaded,
    PendingAck,
    PresenceState,
    Priority,
    PubSub,
    QueueConfig,
    QueueFull,
    RateLimited,
    Raw,
    Refused,
    RetryPolicy,
    RoomExists,
    RoomFull,
    RoomId,
    RoomInfo,
    RoomNotFound,
    RoomOptions,
    RoomPolicy,
    RoomRole,
    Routes,
    SendAttempt,
    SendOptions,
    SendResult,
    Server,
    Settings,
    SettingsError,
    ShuttingDown,
    SlowConsumer,
    StateStore,
    StreamPosition,
    Subscription,
    Target,
    TokenBucketLimiter,
    Tracer,
    Unauthorized,
    Unavailable,
    UnsafeConfiguration,
    UserId,
    UserOffline,
    ValidationError,
    Validator,
    Where,
)
from eyewall.adapters.auth.jwt import JwtAuthenticator
from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.observe.logs import make_logger
from eyewall.adapters.observe.prometheus import PrometheusMetrics
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.client import Client
from eyewall.middleware import auth_required, log, rate_limit, recover, trace, validate
from eyewall.settings import AuthSettings, ServerSettings
from eyewall.testing import TestHub

# --- who it is


async def authenticate(handshake: Handshake) -> ConnMeta | None:
    if handshake.cookies.get("session") is None:
        return None
    return ConnMeta(
        user_id="ada",
        device_id="phone",
        roles=["editor"],
        tags={"beta", "eu"},
        attributes={"plan": "free"},
        ip=handshake.ip,
        user_agent=handshake.headers.get("User-Agent"),
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )


class Tokens:
    def authenticate(self, handshake: Handshake) -> ConnMeta:
        token = handshake.query.get("token")
        if token is None:
            raise Unauthorized("no token")
        meta = ConnMeta(user_id=token, roles=(role for role in ("guest", "member")), tags=())
        assert_type(meta.user_id, UserId | None)
        assert_type(meta.roles, frozenset[str])
        assert_type(meta.tags, frozenset[str])
        return meta


class Access:
    def can_publish(self, meta: ConnMeta, topic: str, event: str) -> bool:
        return "editor" in meta.roles or not topic.startswith("room:")

    async def can_subscribe(self, meta: ConnMeta, room_id: str) -> bool:
        return meta.user_id == room_id


class Slow:
    async def allow(self, key: str) -> float:
        return 0.0 if key.startswith("user:") else 1.0


class Spans:
    @contextlib.contextmanager
    def span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> Iterator[None]:
        yield


class Short:
    def validate(self, topic: str, event: str, data: Any) -> None:
        if len(str(data)) > 100:
            raise ValidationError({"text": ["too long"]})


class Chat(marshmallow.Schema):
    text = fields.Str(required=True)


authenticators: list[Authenticator] = [
    Tokens(),
    StaticAuthenticator({"secret": ConnMeta(user_id="ada", roles=["admin"])}),
    JwtAuthenticator("k" * 32, algorithms=["HS256"]),
]
access: AccessController = Access()


async def pace(key: str) -> float:
    return 0.0


def anything(topic: str, event: str, data: Any) -> None: ...


@contextlib.contextmanager
def span(name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[None]:
    yield


limiter: Limiter = TokenBucketLimiter(rate=10, burst=20)
slow: Limiter = Slow()
tracer: Tracer = Spans()
validator: Validator = MarshmallowValidator({"chat:*": Chat, "room:*": Chat()})
logger: Logger = make_logger()
metrics: Metrics = PrometheusMetrics()
bus: PubSub = MemoryPubSub()
state: StateStore = MemoryState()
history: HistoryStore = MemoryHistory()
stores: list[OfflineStore] = [MemoryOffline(), SqliteOffline("messages.db")]

server = Server(
    queue=QueueConfig(size=128, drop_policy=DropPolicy.DROP_OLDEST),
    heartbeat=HeartbeatConfig(interval=timedelta(seconds=20)),
    compression=CompressionConfig(threshold=512),
    check_origin=["https://example.org", "https://*.example.org"],
    authenticator=authenticate,
    access_controller=access,
    validator=validator,
    metrics=metrics,
    logger=logger,
    tracer=tracer,
    pubsub=bus,
    state=state,
    history=history,
    offline=stores[0],
    offline_default="store",
    node_id="node-1",
    client_commands=True,
    trusted_proxies=["10.0.0.0/8"],
    allowed_hosts=["example.org"],
    allow_unsafe=["split_state"],
    limiter=slow,
    refuse_with="close",
    start_page=False,
    pages=[("/own", tornado.web.RequestHandler)],
    lease=timedelta(seconds=10),
)
hub = server.hub
assert_type(hub, Hub)
Server(authenticator=Tokens(), validator=Short(), check_origin=lambda origin, handshake: True)
Server(
    authenticator=authenticators[1],
    trusted_proxies={"10.0.0.1"},
    check_origin={"https://a.example", "null"},
)


settings = Settings(
    trusted_proxies=["10.0.0.0/8"],
    check_origin={"https://a.example"},
    client_commands={"join", "leave"},
    server=ServerSettings(allowed_hosts=["a.example"], allow_unsafe=["split_state"]),
    auth=AuthSettings(algorithms=["HS256"]),
)
Server.from_settings(settings, tracer=span)


def from_file() -> Server:
    try:
        settings = Settings.load("eyewall.toml")
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    return Server.from_settings(settings, authenticator=authenticate)


# --- handlers


@dataclass
class Say:
    room: str
    text: str


class Move(msgspec.Struct):
    x: int
    y: int


@server.on("chat:say")
async def say(ctx: Context, msg: Envelope[Say]) -> dict[str, int]:
    assert_type(msg.data, Say)
    assert_type(msg.data.text, str)
    return {"members": await ctx.hub.broadcast_room(msg.data.room, "chat:said", data=msg.raw)}


@server.on("board:move", auth_required("editor"), version="2", ordering_key=lambda c, m: c.user_id)
def move(ctx: Context, msg: Envelope[Move]) -> int:
    ctx.from_thread(ctx.send, "board:moved", "message", {"x": msg.data.x})
    report = ctx.from_thread(ctx.hub.send_to_user, "ada", Message("board:moved"))
    assert_type(report, BatchDeliveryReport)
    return msg.data.y


@server.on("chat:plain")
async def plain(ctx: Context, msg: Envelope[Chat]) -> str:
    """What a schema loads is a dict, or what its ``post_load`` makes of it."""
    text: str = msg.data["text"]
    return text + str(msg.data.made)


@server.on("chat:any")
async def untyped(ctx: Context, msg: Envelope) -> None:
    await ctx.send("chat:echo", "message", {"text": msg.data["text"], "raw": msg.raw})
    assert_type(msg.load(Say), Say)
    assert_type(msg.load(Move).x, int)
    assert_type(msg.load(list[int]), list[int])
    number: int | None = msg.load(int | None)
    assert_type(msg.load(Chat), Any)
    assert_type(msg.load(Chat(many=True)), Any)
    if isinstance(msg.raw, Raw) and number is None:
        assert_type(msg.raw.load(Say), Say)
    if msg.stream is not None:
        assert_type(msg.stream.room, RoomId)
    assert_type(msg.id, MessageId | None)


decorated: Callable[[Context, Envelope[Say]], Any] = say


async def timing(ctx: Context, msg: Envelope, next: Handler) -> object:
    ctx.state["started"] = True
    ctx.conn.user_data["seen"] = 1
    return await next(ctx, msg)


around: Middleware = timing
server.use(recover(logger), log(), trace(tracer), validate(validator), around)
server.use(trace(span), validate(anything), rate_limit(pace), rate_limit(lambda key: 0.0))
Server(limiter=pace, validator=anything, tracer=span)
server.use(rate_limit(slow, key=lambda ctx: ctx.user_id or "nobody"), timing)
server.handle("chat:*", untyped, timing)

routes = Routes()


@routes.on("say", timing)
async def grouped(ctx: Context, msg: Envelope) -> None:
    await ctx.reply({"to": "ada"})
    await ctx.send_message(Message("hi", data=[1], id="m1"), SendOptions(require_ack=True))


server.include(routes, prefix="group:")


# --- hooks, plain and async


@server.on_startup
async def begin() -> None:
    room = await hub.create_room("lab", RoomOptions(history_size=100))
    assert_type(room, RoomInfo)
    await hub.create_room(
        "den",
        RoomOptions(
            policy=RoomPolicy.PRIVATE,
            allowed_roles=["editor"],
            capacity=5,
            history_ttl=timedelta(days=1),
            metadata={"title": "The den"},
        ),
    )
    assert_type(room.options.allowed_roles, frozenset[str])


@server.on_shutdown
def end() -> None:
    print("bye")


@hub.on_connect
async def connected(conn: Connection) -> None:
    await conn.send("hello", data={"id": conn.id})
    await conn.send_raw("raw")
    if "lab" in conn.rooms:
        await conn.close("normal")
    await conn.close(DisconnectReason.NORMAL)


@hub.on_connect
def plain_connected(conn: Connection) -> None:
    print(conn.user_id, conn.connected_at, conn.last_activity, conn.is_open)


@hub.on_disconnect
def disconnected(conn: Connection, reason: DisconnectReason) -> None:
    print(conn.meta.device_id, reason)


@hub.on_message
def message(conn: Connection, raw: str | bytes) -> bool:
    return raw == "ping"


@hub.on_error
async def went_wrong(conn: Connection, error: BaseException) -> None:
    print(conn.id, error)


@hub.on_join
async def joined(room_id: str, conn: Connection) -> None:
    print(room_id, conn.id)


@hub.on_leave
def left(room_id: RoomId, conn: Connection, reason: str) -> None:
    print(room_id, conn.id, reason)


@hub.on_send_failure
async def failed(failure: Failure) -> None:
    if failure.reason is FailureReason.QUEUE_FULL:
        print(failure.recipient, failure.message.topic, failure.user_id)


hub.on_queue_full(failed)
hub.on_user_offline(lambda failure: print(failure.recipient))
hub.on_connection_error(failed)
hub.on_timeout(failed)
hub.remove_hook(failed)
server.hub.use(timing)
server.hub.handle("chat:more", untyped, version="1")


async def sweep() -> None:
    await asyncio.sleep(1)


async def sweep_often(seconds: float, *, name: str) -> None:
    print(name, seconds)


task = server.background(sweep_often, 1.0, name="often")
assert_type(task, BackgroundTask)
assert_type(task.done, bool)
task.cancel()
server.background(sweep)
server.background(sweep())


# --- the hub


async def connections(conn_id: str) -> None:
    assert_type(hub.connection(conn_id), Connection | None)
    assert_type(hub.connection_ids(), list[ConnId])
    assert_type(hub.users(), list[UserId])
    assert_type(hub.set_meta(conn_id, roles=["editor"], tags=["a"], user_id="bob"), ConnMeta)
    assert_type(hub.get_meta(conn_id), ConnMeta | None)
    assert_type(hub.find_by_tag("beta"), list[ConnId])
    assert_type(hub.user_connections("ada"), list[ConnId])
    for conn in hub.connections():
        assert_type(conn.meta, ConnMeta)
    assert_type(hub.pending_acks(conn_id), list[PendingAck])
    await hub.disconnect_user("ada", DisconnectReason.DISCONNECTED)
    await hub.disconnect_conn(conn_id, "disconnected")


async def presence() -> None:
    assert_type(await hub.presence("ada"), PresenceState)
    states = await hub.presence_many(["ada", "bob"])
    assert_type(states["ada"], PresenceState)
    assert_type(states.get("bob"), PresenceState | None)
    kept: dict[UserId, PresenceState] = states
    assert_type(states["ada"].typing["lab"], datetime)
    typing: dict[RoomId, datetime] = kept[UserId("ada")].typing
    assert_type(await hub.set_typing("ada", "lab", typing=bool(typing), ttl=2), None)
    PresenceState(True, 1, None, {"lab": datetime.now(UTC)})


async def rooms(conn_id: str) -> None:
    options = JoinOptions(role=RoomRole.MODERATOR, invited_by="ada", force=True)
    assert_type(await hub.join("lab", conn_id, options), Membership)
    assert_type(await hub.leave("lab", conn_id), bool)
    assert_type(await hub.leave_all(conn_id), int)
    await hub.update_room("lab", capacity=3, allowed_roles=["editor"])
    await hub.invite("lab", "bob", by="ada")
    await hub.revoke_invite("lab", "bob")
    await hub.set_role("lab", "bob", RoomRole.ADMIN)
    assert_type(await hub.kick("lab", "bob", "noise"), int)
    assert_type(await hub.kick_user_from_room("bob", "lab"), int)
    await hub.ban("lab", "bob", duration=timedelta(hours=1))
    await hub.unban("lab", "bob")
    assert_type(await hub.members("lab"), list[Member])
    assert_type(await hub.room("lab"), RoomInfo | None)
    assert_type(await hub.rooms(), list[RoomId])
    page = await hub.history("lab", limit=10)
    assert_type(page, HistoryPage)
    for envelope in page.messages:
        assert_type(envelope, Envelope[Any])
    await hub.history("lab", since=StreamPosition("lab", "e1", 3))
    await hub.delete_room("lab")


async def messages(conn_id: str) -> None:
    note = Message("note", data={"a": 1}, headers={"trace": "1"}, priority=Priority.HIGH)
    options = SendOptions(offline="store", ttl=timedelta(hours=1), ordering_key="ada")
    assert_type(await hub.broadcast("note", "message", {"a": 1}), int)
    assert_type(await hub.broadcast_room("lab", "room:lab", data=[1]), int)
    assert_type(await hub.broadcast_room("lab", "room:lab", "read", [1], history=False), int)
    assert_type(await hub.broadcast_text("raw"), int)
    assert_type(await hub.send_to_conn(conn_id, "note"), DeliveryReport)
    assert_type(await hub.send_text_to_conn(conn_id, "raw"), DeliveryReport)
    assert_type(await hub.deliver(conn_id, note, options), DeliveryReport)
    batch = await hub.send_to_user("ada", note, options)
    assert_type(batch, BatchDeliveryReport)
    for report in batch.reports:
        if report.status is DeliveryStatus.STORED:
            print(report.target, report.error, report.attempts)
    await hub.send_to_users(["ada", "bob"], note)
    await hub.send_to_users(set(hub.users()), note)
    await hub.broadcast_with_filter(note, lambda meta: "beta" in meta.tags)
    await hub.broadcast_with_filter(note, Where(tags=["beta"], roles=["a"], user_ids={"ada"}))
    await hub.broadcast_with_filter(note, Where(attributes={"plan": "free"}), options)
    await hub.emit_to_room("lab", note, options)
    await hub.emit_to_room("lab", note, SendOptions(history=False))
    await hub.emit_with_ack(Target.room("lab"), note, AckOptions(history=False))
    await hub.emit_to_room_except("lab", [conn_id], note)
    await hub.emit_to_room_except("lab", conn_id, note)
    await hub.emit_to_room_except("lab", (conn.id for conn in hub.connections()), note)
    await hub.emit_to_room_except("lab", {conn.id for conn in hub.connections()}, note)
    for target in (Target.user("ada"), Target.room("lab"), Target.conn(conn_id)):
        result = await hub.emit_with_ack(target, note, AckOptions(timeout=1, require_all=True))
        assert_type(result, AckResult)
        assert_type(result.acked, tuple[Acker, ...])
        for acker in (*result.acked, *result.refused, *result.silent):
            assert_type(acker.user_id, UserId | None)
    try:
        await hub.emit_with_ack(Target.user("ada"), note, AckOptions(require_all=True))
    except AckTimeout as late:
        assert_type(late.result, AckResult | None)
        if late.result is not None:
            assert_type(late.result.acked, tuple[Acker, ...])
    await hub.request(conn_id, note, timeout=timedelta(seconds=1))
    policy = RetryPolicy(max_retries=2, retryable={FailureReason.QUEUE_FULL})
    sent = await hub.send_to_user_with_retry("ada", note, policy, options)
    assert_type(sent, SendResult)
    for attempt in sent.attempts:
        assert_type(attempt, SendAttempt)
    assert_type(hub.stats(), HubStats)
    hub.reset_stats()
    await hub.shutdown(timeout=5)


# --- errors


async def errors() -> None:
    try:
        await hub.request("c1", Message("x"))
    except RateLimited as error:
        assert_type(error.retry_after, float)
    except (AckTimeout, Nacked, ConnectionClosed, QueueFull, SlowConsumer, UserOffline):
        raise Overloaded("busy", retry_after=2.0) from None
    except (HandlerNotFound, Unauthorized, InvalidEnvelope, RoomNotFound, RoomExists) as error:
        raise RateLimited(1.5, "slowly") from error
    except (RoomFull, JoinForbidden, NotAMember, ShuttingDown, Forbidden) as error:
        raise ValidationError({"room": ["full"]}, "no place") from error
    except (Refused, Unavailable, UnsafeConfiguration, Misuse, EyewallError) as error:
        print(error)


# --- adapters of one's own


class Silence:
    def close(self) -> None: ...


class NoBus:
    async def publish(self, channel: str, payload: bytes) -> None: ...

    async def subscribe(self, channel: str, handler: Callable[[bytes], None]) -> Subscription:
        return Silence()


own_bus: PubSub = NoBus()


def codec_of(codec: Codec) -> bytes:
    return codec.encode(Envelope("a", data={"b": 1}, id="1"))


# --- to run it


async def embed() -> None:
    server.routes("/ws")
    await server.start(host="127.0.0.1", port=0)
    assert_type(server.port, int | None)
    assert_type(server.url, str)
    assert_type(server.ops_port, int | None)
    await server.shutdown(timeout=5)
    async with server as running:
        assert_type(running, Server)


def main() -> None:
    print(eyewall.__version__, NodeId("node-1"))
    server.run(host="0.0.0.0", port=8080)


# --- clients and tests


async def client() -> None:
    async with Client("ws://127.0.0.1:8080/ws", token="secret", headers={"X": "1"}) as c:

        @c.on("room:lab")
        async def said(message: Envelope) -> None:
            print(message.data)

        c.on("chat:*", lambda message: print(message.topic))
        c.on_state(print)
        c.set_token("newer")
        await c.ready()
        c.on_lost(lambda room, code: print(room, code))
        await c.send("chat:say", {"text": "hi"}, event="message")
        assert_type(await c.request("chat:say", {"text": "hi"}, timeout=2), dict[str, Any])
        await c.join("lab")
        await c.publish("lab", {"text": "hi"})
        await c.members("lab")
        assert_type((await c.presence(["ada"]))["ada"], dict[str, Any])
        await c.typing("lab")
        assert_type(await c.history("lab", limit=5), HistoryPage)
        await c.leave("lab")
        async for message in c:
            assert_type(message, Envelope[Any])


async def test_it() -> None:
    async with TestHub(server) as th:
        alice = await th.connect(user="alice", roles=["editor"], tags=["beta"], device_id="x")
        await alice.send("chat:say", {"room": "lab", "text": "hi"}, event="message", ack=True)
        assert_type((await alice.receive()).data, Any)
        assert_type(alice.user_id, UserId | None)
        await alice.request("chat:any", {"text": "hi"})
        await th.advance(30)
        await th.hub.send_to_user("alice", Message("hi"))
        handshake = Handshake(query={"token": "t"}, headers={"X": "1"}, cookies={"a": "b"})
        await authenticate(handshake)


def expectations(at: datetime) -> list[object]:
    """What a test compares with, or hands to a function of its own."""
    return [
        Acker("ada", "c1"),
        DeliveryReport("c1", DeliveryStatus.OK, user_id="ada", conn_id="c1"),
        Failure(Message("x"), "ada", FailureReason.TIMEOUT, None, conn_id="c1", user_id="ada"),
        Member("ada", RoomRole.MEMBER, 1, at),
        Membership("lab", "c1", RoomRole.MEMBER, 1),
        PendingAck(Message("x"), "c1", 1, at, at, user_id="ada"),
        RoomInfo("lab", RoomOptions(policy="public"), 0, at),
    ]


async def called_by_oneself(ctx: Context, msg: Envelope[Say]) -> None:
    """A decorator hands back what it was given, with its types."""
    assert_type(await say(ctx, msg), dict[str, int])
    beginning: Coroutine[Any, Any, None] = begin()
    await beginning
    assert_type(end(), None)
