"""What the hub sends: each method hands on what it was given, as it was given."""

import asyncio

import pytest

from eyewall.application.hub.arguments import several
from eyewall.domain.envelope import Message
from eyewall.domain.report import SendOptions


def test_one_id_is_not_several():
    """A string would be read letter by letter."""
    assert several(["ada", "bob"]) == ["ada", "bob"]
    with pytest.raises(ValueError, match="several"):
        several("ada")


@pytest.mark.parametrize("skipped", [False, True])
async def test_one_connection_may_be_left_out_by_its_id_alone(make_node, skipped):
    node = await make_node()
    ada, bob = await node.connect("ada"), await node.connect("bob")
    for client in (ada, bob):
        await node.hub.join("lab", client.id)

    left_out = ada.id if skipped else []
    await node.hub.emit_to_room_except("lab", left_out, Message("news", data=1))

    assert [message["topic"] for message in ada.heard()] == [] if skipped else ["news"]
    assert [message["topic"] for message in bob.heard()] == ["news"]


async def test_options_change_how_a_message_travels(make_node):
    node = await make_node()
    ada = await node.connect("ada")
    options = SendOptions(require_ack=True, ack_timeout=1.0)

    sending = node.hub.send_to_users(["ada"], Message("news"), options)
    task = asyncio.ensure_future(sending)
    await node.advance(0)
    [message] = ada.heard()
    ada.ack(message)

    assert message["ack"] is True
    assert (await task).success == 1
