import asyncio

import pytest

from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.errors import QueueFull
from eyewall.domain.report import FailureReason, SendOptions
from tests.application.fakes import settle

LIFECYCLE = ["on_connect", "on_disconnect", "on_message", "on_error", "on_join", "on_leave"]
FAILURES = [
    "on_send_failure",
    "on_queue_full",
    "on_user_offline",
    "on_connection_error",
    "on_timeout",
]


@pytest.mark.parametrize("name", LIFECYCLE + FAILURES)
async def test_every_registration_decorates_and_can_be_taken_back(node, name):
    def hook(*args):
        """Nothing."""

    assert getattr(node.hub, name)(hook) is hook
    assert node.hub.remove_hook(hook)
    assert not node.hub.remove_hook(hook)


async def test_remove_hook_takes_it_back_from_everywhere(node):
    heard = []
    node.hub.on_connect(heard.append)
    node.hub.on_user_offline(heard.append)

    node.hub.remove_hook(heard.append)
    await node.connect("ada")
    await node.hub.send_to_user("nobody", Message("t"))

    assert heard == []


async def test_each_lifecycle_hook_hears_of_its_own(node):
    heard = []
    hub = node.hub
    hub.on_connect(lambda conn: heard.append(("connect", conn.user_id)))
    hub.on_message(lambda conn, raw: heard.append(("message", raw)))
    hub.on_error(lambda conn, error: heard.append(("error", str(error))))
    hub.on_join(lambda room_id, conn: heard.append(("join", room_id, conn.user_id)))
    hub.on_leave(lambda room_id, conn, reason: heard.append(("leave", room_id, str(reason))))
    hub.on_disconnect(lambda conn, reason: heard.append(("disconnect", reason)))

    @node.on("t")
    async def broken(ctx, msg):
        raise RuntimeError("bug")

    ada = await node.connect("ada")
    await ada.ask('{"topic":"t"}')
    await hub.join("r", ada.id)
    await ada.vanish()

    assert heard == [
        ("connect", "ada"),
        ("message", '{"topic":"t"}'),
        ("error", "bug"),
        ("join", "r", "ada"),
        ("leave", "r", "disconnected"),
        ("disconnect", DisconnectReason.CONNECTION_LOST),
    ]


async def test_each_failure_handler_hears_of_its_own(node):
    heard = []
    hub = node.hub
    for name in FAILURES:
        getattr(hub, name)(lambda failure, name=name: heard.append((name, failure.reason)))
    ada = await node.connect("ada")

    await hub.send_to_user("nobody", Message("t"))
    assert heard == [
        ("on_user_offline", FailureReason.USER_OFFLINE),
        ("on_send_failure", FailureReason.USER_OFFLINE),
    ]
    heard.clear()

    task = asyncio.ensure_future(hub.deliver(ada.id, Message("t"), SendOptions(require_ack=True)))
    await node.advance(6)
    await task
    assert heard[0] == ("on_timeout", FailureReason.ACK_TIMEOUT)
    heard.clear()

    ada.link.full = True
    with pytest.raises(QueueFull):
        await ada.conn.send("t")
    assert heard[0] == ("on_queue_full", FailureReason.QUEUE_FULL)
    heard.clear()

    await ada.vanish()
    await hub.send_to_conn(ada.id, "t")
    await settle()
    assert heard[0] == ("on_connection_error", FailureReason.CONN_CLOSED)


async def test_hooks_added_while_it_runs_apply_from_then_on(node):
    heard = []
    ada = await node.connect("ada")
    node.hub.on_disconnect(lambda conn, reason: heard.append(conn.user_id))

    await ada.vanish()

    assert heard == ["ada"]
