"""``system:refresh``: why a token was not taken is in the log, and the token is not."""

from __future__ import annotations

import asyncio

import pytest

from eyewall.application.ports.logging import LINES, PERIOD
from eyewall.domain.errors import Unauthorized, Unavailable
from eyewall.domain.identity import ConnMeta
from tests.application.fakes import settle

TOKEN = "s3cret-t0ken-of-ada"


def answering(outcome):
    """An authenticator that says or raises this."""

    def authenticate(handshake):
        token = handshake.query["token"]
        if isinstance(outcome, ConnMeta) or outcome is None:
            return outcome
        raise outcome(token)

    return authenticate


async def refresh(client, token=TOKEN):
    message = {"id": "q", "topic": "system:refresh", "ack": True, "data": {"token": token}}
    (reply,) = [m for m in await client.ask(message) if m.get("event") == "ack"]
    await settle()
    return reply["data"]


def told(node):
    return [fields for _, event, fields in node.logger.entries if event == "refresh_refused"]


@pytest.mark.parametrize(
    ("outcome", "reason", "hint"),
    [
        (
            lambda token: Unauthorized("the token has expired"),
            "unauthorized",
            "the token has expired",
        ),
        (lambda token: Unauthorized(f"{token} is not known"), "unauthorized", "*** is not known"),
        (lambda token: Unauthorized(token[:-2]), "unauthorized", ...),
        (lambda token: Unauthorized(), "unauthorized", ...),
        (lambda token: Unavailable("no database"), "unavailable", "no database"),
        (None, "unauthorized", "the authenticator returned None"),
        (ConnMeta(user_id="ben"), "forbidden", "the token is another user's"),
    ],
)
async def test_why_a_token_was_not_taken_is_logged(make_node, outcome, reason, hint):
    node = await make_node(authenticator=answering(outcome))
    client = await node.connect("ada")

    assert (await refresh(client))["code"] == reason

    (line,) = told(node)
    assert (line["reason"], line["user_id"]) == (reason, "ada")
    assert line.get("hint", ...) == hint
    assert TOKEN not in repr(node.logger.entries)


async def test_the_token_is_for_the_user_whom_the_connection_is_by_then(make_node):
    """It may become another's while the authenticator thinks."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def slowly(handshake):
        asked.set()
        await go.wait()
        return ConnMeta(user_id="ada", roles=["admin"])

    node = await make_node(authenticator=slowly)
    client = await node.connect("ada")
    asking = asyncio.ensure_future(refresh(client))
    await asked.wait()
    node.hub.set_meta(client.id, user_id="ben")
    go.set()

    assert (await asking)["code"] == "forbidden"
    assert client.conn.meta.roles == frozenset()


async def test_a_client_is_told_of_its_token_and_not_of_the_authenticator(make_node):
    node = await make_node(authenticator=answering(None))

    assert (await refresh(await node.connect("ada")))["error"] == "the token is not valid"


async def test_without_an_authenticator_the_log_says_so(make_node):
    node = await make_node()

    assert (await refresh(await node.connect("ada")))["code"] == "unauthorized"

    assert [line["hint"] for line in told(node)] == ["there is nothing to refresh"]


async def test_a_client_that_goes_on_asking_does_not_fill_the_log(make_node):
    node = await make_node(authenticator=answering(None))
    client = await node.connect("ada")

    for _ in range(LINES + 3):
        await refresh(client)
    assert len(told(node)) == LINES
    await node.clock.advance(PERIOD)
    await refresh(client)

    assert [line.get("left_out") for line in told(node)] == [None] * LINES + [3]


@pytest.mark.parametrize("token", [TOKEN, "it's 'quoted'"])
async def test_an_authenticator_that_fails_with_the_token_in_its_text_shows_none(make_node, token):
    node = await make_node(authenticator=answering(KeyError))
    client = await node.connect("ada")

    assert (await refresh(client, token))["code"] == "internal"

    (line,) = [f for _, event, f in node.logger.entries if event == "handler_failed"]
    assert "KeyError" in line["error"]
    assert token not in f"{line}"
    assert line["exc_info"].__suppress_context__


async def test_one_that_fails_otherwise_is_logged_as_it_is(make_node):
    error = ValueError("a bug")
    node = await make_node(authenticator=answering(lambda token: error))

    await refresh(await node.connect("ada"))

    (line,) = [f for _, event, f in node.logger.entries if event == "handler_failed"]
    assert line["exc_info"] is error
