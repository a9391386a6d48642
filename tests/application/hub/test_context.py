import asyncio

import pytest

from eyewall.domain.envelope import Message
from eyewall.domain.errors import ConnectionClosed, Misuse, QueueFull
from eyewall.domain.report import DeliveryStatus, SendOptions
from tests.application.fakes import settle


@pytest.fixture
async def ada(node):
    return await node.connect("ada")


async def test_a_reply_has_the_request_s_topic_and_ref(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        await ctx.reply({"n": 1})

    [reply] = await ada.ask({"id": "1", "topic": "t"})

    assert reply == {"id": reply["id"], "ref": "1", "topic": "t", "data": {"n": 1}}


async def test_replies_and_acks_leave_in_the_order_in_which_they_were_sent(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        await ctx.reply("first")
        await ctx.send("second", "e", 2)

    first, second, ack = await ada.ask({"id": "1", "topic": "t", "ack": True})

    assert first["data"] == "first"
    assert (second["topic"], second["event"], second["data"]) == ("second", "e", 2)
    assert ack["event"] == "ack"


async def test_a_payload_is_relayed_byte_for_byte(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        await ctx.reply(msg.raw)

    await ada.ask('{"topic": "t", "data": {"n": 1.10, "big": 123456789012345678901}}')

    assert b'{"n": 1.10, "big": 123456789012345678901}' in ada.link.frames[-1].payload


async def test_send_message_reports_what_became_of_it(node, ada):
    reports = []

    @node.on("t")
    async def handler(ctx, msg):
        reports.append(await ctx.send_message(Message("plain")))
        reports.append(await ctx.send_message(Message("asked"), SendOptions(require_ack=True)))

    await_ack = await ada.ask({"topic": "t"})
    ada.ack(await_ack[1])
    await settle()

    assert [r.status for r in reports] == [DeliveryStatus.OK, DeliveryStatus.OK]


@pytest.mark.parametrize(("how", "error"), [("closed", ConnectionClosed), ("full", QueueFull)])
async def test_what_can_t_be_sent_raises(node, ada, how, error):
    raised = []

    @node.on("t")
    async def handler(ctx, msg):
        if how == "full":
            ada.link.full = True
        else:
            await ctx.conn.close()
        for send in (ctx.reply(1), ctx.send("t")):
            try:
                await send
            except error as found:
                raised.append(found)

    await ada.ask({"topic": "t"})

    assert len(raised) == 2


async def test_it_knows_who_and_what_it_is_about(node, ada):
    seen = []

    @node.on("chat:*")
    async def handler(ctx, msg):
        seen.append((ctx.user_id, ctx.meta is ctx.conn.meta, ctx.message is msg, ctx.route))
        seen.append(ctx.hub is node.hub)

    await ada.ask({"topic": "chat:x"})

    assert seen == [("ada", True, True, "chat:*"), True]


# --- from a thread


async def in_thread(node, client, work):
    """Have a plain handler run ``work(ctx)``; returns the data of the ack."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    @node.on("t")
    def handler(ctx, msg):
        try:
            return work(ctx)
        finally:
            loop.call_soon_threadsafe(done.set)

    client.say({"id": "1", "topic": "t", "ack": True})
    await done.wait()
    for _ in range(200):
        await settle()
        for found in client.heard():
            if found.get("event") == "ack":
                return found["data"]
        await asyncio.to_thread(lambda: None)
    raise AssertionError("no ack")


async def test_a_plain_handler_runs_a_coroutine_function_on_the_loop(node, ada):
    async def add(a, b=0):
        return [a + b, asyncio.get_running_loop() is loop]

    loop = asyncio.get_running_loop()

    answer = await in_thread(node, ada, lambda ctx: ctx.from_thread(add, 1, b=2))

    assert answer["result"] == [3, True]


async def test_a_plain_handler_may_send(node, ada):
    await in_thread(node, ada, lambda ctx: ctx.from_thread(ctx.send, "t", "e", 1))

    assert b'"data":1' in ada.link.frames[0].payload


async def test_what_is_raised_on_the_loop_is_raised_in_the_thread(node, ada):
    async def fail():
        raise LookupError("nothing there")

    def work(ctx):
        try:
            ctx.from_thread(fail)
        except LookupError as error:
            return str(error)

    assert (await in_thread(node, ada, work))["result"] == "nothing there"


async def test_on_the_loop_itself_it_is_a_mistake(node, ada):
    """It would wait for itself for ever, and the whole node with it."""
    raised = []

    @node.on("t")
    async def handler(ctx, msg):
        try:
            ctx.from_thread(ctx.send, "t")
        except Misuse as error:
            raised.append(error)

    await ada.ask({"topic": "t"})

    assert len(raised) == 1
