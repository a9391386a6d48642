from datetime import timedelta

import pytest

from eyewall.domain.connection import DisconnectReason
from tests.application.fakes import START, RecordingLogger


def after(seconds):
    return START + timedelta(seconds=seconds)


async def test_a_token_that_runs_out_ends_the_connection(node):
    ada = await node.connect("ada", expires_at=after(60))

    await node.advance(59.9)
    assert ada.closed is None
    await node.advance(0.2)
    assert ada.closed is DisconnectReason.TOKEN_EXPIRED
    assert not ada.conn.is_open


async def test_a_connection_without_an_end_is_not_watched(node):
    await node.connect("ada")

    assert len(node.parts.expiry) == 0


async def test_a_token_that_was_refreshed_counts_from_then_on(node):
    ada = await node.connect("ada", expires_at=after(60))
    await node.advance(50)

    node.hub.set_meta(ada.id, expires_at=after(120))
    await node.advance(60)
    assert ada.closed is None
    await node.advance(11)
    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


@pytest.mark.parametrize("sooner", [10, -10])
async def test_a_new_token_may_run_out_earlier(node, sooner):
    ada = await node.connect("ada", expires_at=after(60))

    node.hub.set_meta(ada.id, expires_at=after(sooner))
    await node.advance(11)

    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_a_connection_may_be_let_live_for_ever(node):
    ada = await node.connect("ada", expires_at=after(60))

    node.hub.set_meta(ada.id, expires_at=None)
    await node.advance(1000)

    assert ada.closed is None
    assert len(node.parts.expiry) == 0


async def test_a_connection_that_has_gone_is_not_watched_any_more(node):
    ada = await node.connect("ada", expires_at=after(60))
    await ada.vanish()

    assert len(node.parts.expiry) == 0
    node.parts.expiry.watch(ada.conn)
    assert len(node.parts.expiry) == 0


async def test_after_the_end_of_the_node_nothing_is_due(make_node, clock):
    logger = RecordingLogger()
    node = await make_node(logger=logger)
    ada = await node.connect("ada", expires_at=after(60))
    await node.stop()

    await clock.advance(100)

    assert ada.closed is None
    assert logger.of("error") == []
