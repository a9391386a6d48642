"""The page for those who come from Go: every name of theirs is on it, every name of ours exists.

A code span in a right-hand column is read as Python and looked up piece by piece, without
being run: ``Server(queue=QueueConfig(size=256))`` needs the two names and the two keywords.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import eyewall
from eyewall import Connection, Context, Envelope, Server, Settings
from eyewall.adapters.web.http.health import health_routes

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-go.md"

WSX = """
    NewServer Option WithCheckOrigin WithBufferSizes WithAuthenticator WithAccessController
    WithValidator WithLogger WithMetrics WithDebug WithQueueConfig WithHeartbeat
    WithMaxMessageSize WithMiddleware WithPubSub WithClusterChannel
    Server.{Hub Use Handle HandleWith HandleVersioned Shutdown ServeHTTP} NewHub
    Hub.{Register Unregister OnConnect OnDisconnect SetConnMeta GetConnMeta FindConnsByTag
    UserConnections Presence SetTyping Use Handle HandleWith HandleVersioned Dispatch
    CreateRoom Join JoinWithOptions Leave LeaveAll KickUserFromRoom Broadcast BroadcastRoom
    SendToConn SendToUser SendToUsers BroadcastWithFilter EmitToRoomExcept EmitWithAck
    DisconnectUser DisconnectConn GracefulShutdown Stats}
    Context Context.{Send SendMsg UserID Meta Conn Hub Incoming}
    Conn Conn.{ID CreatedAt Meta SetMeta Send StartHeartbeat WithContext}
    Envelope RawEnvelope
    Envelope.{ID Ref Topic Event Namespace Version Data Headers Ack}
    ConnID UserID RoomID ConnMeta PresenceState PresenceState.{TypingByRoom TypingExpiresAt}
    DropPolicy DropNewest DropOldest DropAndDisconnect
    DisconnectReason DisconnectNormal DisconnectReadError DisconnectWriteError
    DisconnectSlowConsumer DisconnectServerStop DisconnectAuthFailed DisconnectPolicyViolate
    RoomPolicy RoomPolicyPublic RoomPolicyPrivate RoomPolicyInviteOnly
    RoomRole RoomRoleMember RoomRoleAdmin RoomOptions JoinOptions
    OutboundMessage OutboundMessage.{ID Topic Event Namespace Version Data Headers RequireAck}
    SendOptions.{RequireAck AckTimeout RetryMax RetryBackoff Ordered OrderingKey}
    ConnFilter DeliveryStatus DeliveryOK DeliveryDropped DeliveryFailed
    DeliveryReport BatchDeliveryReport AckStatus AckStatusOK AckStatusNACK AckPayload
    AckOptions.{Timeout RequireAll} AckResult Target
    QueueConfig QueueConfig.{Size DropPolicy SlowConsumerThreshold}
    HeartbeatConfig HeartbeatConfig.{Interval PongTimeout WriteWait ReadLimit}
    HubStats HubStats.{Connections Users Rooms InMessages OutMessages Errors Drops}
    Authenticator.Authenticate AccessController.{CanSubscribe CanPublish} Validator.Validate
    OnConnectHook OnDisconnectHook Logger.{Info Error}
    Metrics.{IncConnections IncMessagesIn IncMessagesOut IncErrors IncDropped
    ObserveHandlerLatency} PubSub.{Publish Subscribe} MemoryPubSub NewMemoryPubSub
    HandlerFunc Middleware Chain RecoverMiddleware LoggingMiddleware AuthRequiredMiddleware
    ValidationMiddleware TracingMiddleware RateLimitMiddleware Tracer.Start Limiter.Allow
    InMemoryTokenBucketLimiter NewInMemoryTokenBucketLimiter
    ConnRegistry RoomManager Router WorkerPool gin.Handler
    ErrConnectionClosed ErrHandlerNotFound ErrRateLimited ErrPoolClosed ErrPoolFull
    ErrSendQueueFull ErrSlowConsumer ErrUnauthorized ErrForbidden ErrInvalidPayload
    ErrRoomNotFound ErrRoomCapacity ErrRoomJoinForbidden ErrAckTimeout ErrHubShuttingDown
"""

GO_WSC = """
    NewHub Run Stop HandleWebSocket GetConnectedClients GetConnectedClientsIDs
    GetAllConnectedUsers GetClientByID Broadcast BroadcastText SendToClient SendTextToClient
    CreateRoom DeleteRoom JoinRoom LeaveRoom BroadcastToRoom GetRoomClients OnClientConnected
    OnClientDisconnected OnMessageReceived OnError EnableACK
    ACKConfig.{Timeout MaxRetries RetryInterval EnableOfflineMessages}
    SendACKMessage GetPendingACKs GetStats ResetStats
    HubConfig.{MaxConnections ReadBufferSize WriteBufferSize HandshakeTimeout
    EnableCompression CheckOrigin}
    HubStats.{ConnectedClients ActiveRooms TotalMessages ErrorCount StartTime}
    Client Client.{ID Conn Send Hub ConnectedAt LastActivity UserData IsConnected Disconnect
    SetUserData GetUserData}
    SendFailureHandler QueueFullHandler UserOfflineHandler ConnectionErrorHandler TimeoutHandler
    AddSendFailureHandler AddQueueFullHandler AddUserOfflineHandler AddConnectionErrorHandler
    AddTimeoutHandler RemoveSendFailureHandler RemoveQueueFullHandler RemoveUserOfflineHandler
    RemoveConnectionErrorHandler RemoveTimeoutHandler
    SendToUserWithRetry SendResult SendAttempt
    SendFailureReasonQueueFull SendFailureReasonBroadcastFull SendFailureReasonPendingFull
    SendFailureReasonUserOffline SendFailureReasonTimeout SendFailureReasonSendTimeout
    SendFailureReasonAckTimeout SendFailureReasonConnClosed SendFailureReasonConnError
    SendFailureReasonChannelClosed SendFailureReasonUnknown SendFailureReasonValidation
    SendFailureReasonPermission
    WSC.{MaxRetries BaseDelay BackoffFactor RetryableErrors NonRetryableErrors}
"""
IN_WORDS = {"message priority", "health handler"}
"""What go-wsc has, and the page says in words."""


def names(text: str) -> set[str]:
    """``A B.{C D}`` is A, B.C and B.D."""

    def written_out(found: re.Match[str]) -> str:
        return " ".join(f"{found[1]}.{name}" for name in found[2].split())

    return set(re.sub(r"(\w+)\.\{([^}]*)\}", written_out, text).split())


def rows(system: str) -> list[tuple[str, str]]:
    """The rows of the table below the heading ``system``: what was there, what is here."""
    section = PAGE.read_text().partition(f"\n## {system}\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert all(len(row) == 2 for row in cells[2:]), "a row has two columns"
    return [(there.strip(), here.strip()) for there, here in cells[2:]]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


ROWS = [*rows("WSX"), *rows("go-wsc")]
HERE = sorted({span for _, here in ROWS for span in spans(here)})

SERVER = Server()
ROOTS = {
    **{name: getattr(eyewall, name) for name in eyewall.__all__},
    "eyewall": eyewall,
    "server": SERVER,
    "hub": SERVER.hub,
    "ctx": Context,
    "conn": Connection,
    "msg": Envelope,
}
STAND_INS = {  # what a reader has of his own
    *("conn_id", "user_ids", "data", "message", "handler", "middleware", "first", "second"),
    *("key", "validator", "tracer", "limiter", "Say", "T", "next", "origin", "handshake"),
}


class Missing(Exception):
    """What is named is not there."""


def look_up(span: str) -> None:
    """Raise ``Missing`` if anything that ``span`` names is not there."""
    if span.startswith("/"):
        if span not in {route[0] for route in health_routes(list)}:
            raise Missing(f"no page {span}")
    elif span.startswith("EYEWALL_"):
        setting, _, value = span.partition("=")
        try:
            Settings.load(environ={setting: value})
        except ValueError as error:
            raise Missing(str(error)) from None
    elif span.startswith("async def "):
        ast.parse(f"{span}: ...")  # a handler of the reader's own
    else:
        resolve(ast.parse(span.removeprefix("@"), mode="eval").body)


def resolve(node: ast.expr) -> Any:
    """What an expression stands for; None for what is a reader's own, or a value."""
    match node:
        case ast.Name(id=name) if name in ROOTS:
            return ROOTS[name]
        case ast.Name(id=name) if name in STAND_INS:
            return None
        case ast.Attribute(value=value, attr=name):
            return attribute(resolve(value), name)
        case ast.Subscript(value=value, slice=inner):
            resolve(inner)
            return resolve(value)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            for element in elements:
                resolve(element)
        case ast.Call(func=func, args=args, keywords=keywords):
            for value in (*args, *(keyword.value for keyword in keywords)):
                resolve(value)
            takes(resolve(func), args, keywords)
        case ast.Constant() | ast.BinOp(left=ast.Constant(), right=ast.Constant()):
            return None
        case _:
            raise Missing(ast.unparse(node))
    return None


def attribute(owner: Any, name: str) -> Any:
    if name.startswith("_") or not hasattr(owner, name):
        if not isinstance(owner, ModuleType):
            raise Missing(f"{name} of {owner!r:.40}")
        try:
            return importlib.import_module(f"{owner.__name__}.{name}")
        except ImportError:
            raise Missing(f"{owner.__name__}.{name}") from None
    return getattr(owner, name)


def takes(fn: Any, args: list[ast.expr], keywords: list[ast.keyword]) -> None:
    """Raise ``Missing`` if ``fn`` can't be called like that. An ellipsis is any argument."""
    if fn is None:
        return
    signature = inspect.signature(fn)
    given = [arg for arg in args if not (isinstance(arg, ast.Constant) and arg.value is ...)]
    # A method that was looked up on its class wants its self.
    own = [None] if next(iter(signature.parameters), None) == "self" else []
    try:
        signature.bind_partial(*own, *given, **{str(word.arg): None for word in keywords})
    except TypeError as error:
        raise Missing(f"{fn!r:.60}: {error}") from None


@pytest.mark.parametrize("span", HERE)
def test_every_name_in_the_right_hand_columns_exists(span):
    look_up(span)


@pytest.mark.parametrize(
    "span",
    [
        "hub.send_to_everybody",
        "hub._node",
        "hub.join('tea', conn_id, JoinOptions(), 4)",
        "hub.broadcast_room(room='tea')",
        "ctx.send(data, data, data, data)",
        "Server(buffer_sizes=1)",
        "Server(queue=QueueConfig(length=256))",
        "Servers()",
        "lambda: nothing",
        "FailureReason.BORED",
        "SendResult.tries",
        "conn.socket",
        "@hub.on_boredom",
        "@server.on('chat:*', edition='v2')",
        "eyewall.adapters.bus.nats.NatsPubSub",
        "eyewall.middleware.compress()",
        "EYEWALL_LOGGING__LEVEL=chatty",
        "EYEWALL_QUEUE__LENGTH=256",
        "/health",
    ],
)
def test_a_name_that_does_not_exist_is_found_out(span):
    with pytest.raises(Missing):
        look_up(span)


@pytest.mark.parametrize(("system", "theirs"), [("WSX", WSX), ("go-wsc", GO_WSC)])
def test_every_name_of_theirs_is_in_the_left_hand_column(system, theirs):
    there = " ".join(there for there, _ in rows(system))
    said = {span.partition("(")[0] for span in spans(there)}

    assert names(theirs) - said == set()


def test_what_has_no_name_is_there_in_words():
    assert {there for there, _ in rows("go-wsc")} >= IN_WORDS


@pytest.mark.parametrize(("there", "here"), ROWS, ids=[there for there, _ in ROWS])
def test_every_row_says_what_to_write_or_that_there_is_nothing(there, here):
    assert spans(here) or here.startswith(("Nothing", "a keyword")), there
