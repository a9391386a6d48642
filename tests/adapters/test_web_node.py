"""What links share: the spare parser, the stamp of time, who is there."""

from __future__ import annotations

import asyncio

from eyewall.adapters.web.deflate import CompressionConfig
from tests.adapters.web_support import masked, served, turns, until


async def test_links_read_with_one_parser_while_they_hold_nothing():
    async with served() as here:
        spare = here.node.parser
        one, first = await here.pair()
        two, second = await here.pair()
        one.send("1")
        two.send("2")
        assert (await one.text(), await two.text()) == ("1", "2")
        assert here.node.parser is spare

        one.write(masked("half")[:4])
        await until(lambda: first._parser)
        assert first._parser is spare
        assert here.node.parser is not spare
        two.send("whole")
        assert await two.text() == "whole"
        one.write(masked("half")[4:])
        assert await one.text() == "half"
        assert first._parser is None
        assert second._parser is None


async def test_links_that_inflate_share_a_parser_of_their_own():
    offer = {"Sec_WebSocket_Extensions": "permessage-deflate"}
    async with served(compression=CompressionConfig()) as here:
        spare, plain = here.node.inflating_parser, here.node.parser
        client, link = await here.pair(**offer)
        client.write(masked("half")[:4])
        await until(lambda: link._parser)
        assert link._parser is spare
        assert here.node.inflating_parser is not spare
        assert here.node.parser is plain


async def test_a_violation_does_not_spoil_the_parser_of_the_others():
    async with served() as here:
        bad = await here.connect()
        good = await here.connect()
        bad.write(b"\xff\xff")
        good.send("fine")
        assert await good.text() == "fine"
        assert (await bad.closed())[0] == 1002
        good.send("still fine")
        assert await good.text() == "still fine"


async def test_it_knows_when_the_last_link_is_gone():
    async with served() as here:
        await asyncio.wait_for(here.node.empty(), 1)
        client, link = await here.pair()
        waiting = asyncio.create_task(here.node.empty())
        await turns()
        assert not waiting.done()
        client.leave()
        await asyncio.wait_for(waiting, 5)
        assert link not in here.node.links


async def test_reading_waits_while_too_much_is_to_be_written(monkeypatch):
    async with served() as here:
        client = await here.connect()
        monkeypatch.setattr("eyewall.adapters.web.flush.FULL_FRAMES", -1)
        client.send("hello")
        await turns(50)
        assert here.intake.messages == []
        monkeypatch.undo()

        assert await client.text() == "hello"
