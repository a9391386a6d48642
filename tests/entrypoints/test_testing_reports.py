"""What a failed test says."""

from __future__ import annotations

from eyewall import Envelope, Server
from eyewall.testing import TestHub
from eyewall.testing.client import in_one_line, nothing_due


def test_a_message_is_a_line():
    assert in_one_line(Envelope("chat:say", "shout", {"a": 1}, ref="7")) == (
        "chat:say shout ref=7 {'a': 1}"
    )
    assert in_one_line("hello") == "raw frame 'hello'"
    assert len(in_one_line(Envelope("t", data="x" * 1000))) < 200


async def test_only_the_newest_are_shown():
    async with TestHub(Server()) as th:
        alice = await th.connect(user="alice")
        for number in range(7):
            await th.hub.broadcast("news", "message", number)
        await alice.received()

        text = nothing_due(alice, "no message is due")

    assert "(the last 5 of 7)" in text
    assert "news message 6" in text
    assert "news message 1" not in text


async def test_what_was_logged_is_shown_but_for_what_is_usual():
    server = Server()

    @server.on("bug")
    async def bug(ctx, msg):
        raise ZeroDivisionError("mine")

    async with TestHub(server) as th:
        alice = await th.connect(user="alice")
        await alice.send("bug")
        await alice.close()
        th.logs.info("usual")

    text = th.story()
    assert "alice (closed: client_closed) took nothing" in text
    assert "alice did not take:\n  bug error" in text
    assert "error handler_failed route='bug'" in text
    assert "ZeroDivisionError" in text
    assert "usual" not in text
