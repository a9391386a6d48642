"""The page of the wire protocol says what the server does."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import websockets

from eyewall import ConnMeta, Context, Envelope, Message, RoomOptions, Server, ValidationError
from eyewall.adapters.codec import json as json_codec
from eyewall.adapters.codec import msgpack as msgpack_codec
from eyewall.client.link import comes_back
from eyewall.domain import errors, handshake
from eyewall.domain.commands import COMMANDS
from eyewall.domain.connection import CLOSE_CODES
from eyewall.domain.envelope import MAX_FIELD, MAX_HEADER_CHARACTERS, MAX_HEADERS, MAX_TOPIC
from eyewall.domain.handshake import RefusalReason
from eyewall.domain.room import RoomRole
from eyewall.testing import TestClient, TestHub

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "protocol.md").read_text()

ALWAYS_ON = {"resume", "refresh"}
NEVER_SENT = {"system:raw"}
"""Names a text without an envelope to failure handlers."""


def section(title: str) -> str:
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert found is not None, title
    return found[2]


def rows(title: str, columns: int) -> Iterator[list[str]]:
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns and not set(cells[0]) <= {"-"}:
            yield cells


def names(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def fields(text: str) -> tuple[set[str], set[str]]:
    """What `{a, b?}` must have, and what it may have."""
    (found,) = re.findall(r"`\{(.*?)\}`", text)
    listed = [name.strip() for name in found.split(",") if name.strip()]
    return {n for n in listed if "?" not in n}, {n.strip("?") for n in listed}


# --- the envelope


def test_the_fields_of_an_envelope_are_those_of_both_codecs():
    found = {names(name)[0]: kind for name, kind, _ in rows("Envelope", 3) if names(name)}

    assert set(found) == set(json_codec._Wire.__struct_fields__)
    assert set(found) == set(msgpack_codec._Wire.__struct_fields__)
    for name in ("id", "ref", "event", "namespace", "version"):
        assert f"at most {MAX_FIELD} characters" in found[name]
    assert f"1 to {MAX_TOPIC} characters" in found["topic"]
    assert f"at most {MAX_HEADERS} and {MAX_HEADER_CHARACTERS:,} characters" in found["headers"]
    assert f"deeper than {json_codec.MAX_DEPTH}" in section("Envelope")


def test_the_subprotocols_are_those_of_the_codecs():
    found = {names(name)[0] for name, *_ in rows("Transport", 3) if names(name)}

    codecs = (json_codec.JsonCodec, msgpack_codec.MsgpackCodec)
    assert found == {codec.subprotocol for codec in codecs}


# --- codes


def codes() -> dict[str, type[errors.EyewallError]]:
    """The code of each refusal that there is."""
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    families = (errors.Refused, errors.Unavailable)
    kinds = [kind for kind in found if issubclass(kind, families) and kind is not errors.Refused]
    return {kind.code: kind for kind in kinds}


def test_the_page_has_every_code_and_no_other():
    found = {names(code)[0]: names(further) for code, _, further in rows("Codes", 3) if names(code)}

    assert set(found) == {*codes(), errors.INTERNAL}
    for code, further in found.items():
        made = errors.from_code(code, "", {})
        assert set(further) == set(made.details()), code


# --- reserved topics


def literals() -> set[str]:
    """The reserved topics that the source names."""
    found: set[str] = set()
    for layer in ("domain", "application"):
        for path in (ROOT / layer).rglob("*.py"):
            found |= set(re.findall(r'"(system:\w+)"', path.read_text()))
    return found - NEVER_SENT


REQUESTS = {
    names(topic)[0]: (data, answer) for topic, data, answer in rows("Requests", 3) if names(topic)
}
SENT = [[*names(t), *names(e), d] for t, e, d, _ in rows("From the server", 4) if names(t)]


def test_the_requests_are_those_of_the_server():
    assert set(REQUESTS) == {f"system:{name}" for name in (*COMMANDS, *ALWAYS_ON)}


def test_every_reserved_topic_of_the_source_is_on_the_page():
    said = {topic for topic, *_ in SENT if topic.startswith("system:")}

    assert literals() <= {*REQUESTS, *said, "system:error"}
    assert said <= literals()


@pytest.fixture
async def th() -> AsyncIterator[TestHub]:
    def authenticate(handshake: Any) -> ConnMeta:
        later = th.now() + timedelta(minutes=5)
        return ConnMeta(user_id="ada", expires_at=later)

    server = Server(client_commands=True, authenticator=authenticate)
    async with TestHub(server) as th:
        kept = RoomOptions(history_size=10, announce=True)
        await th.hub.create_room("kept", kept)
        yield th


ASKED: dict[str, list[dict[str, Any]]] = {
    "system:join": [{"room": "kept"}, {"room": "plain"}, {"room": "kept", "since": "start"}],
    "system:publish": [{"room": "kept", "event": "said", "data": 1}, {"room": "plain"}],
    "system:members": [{"room": "kept"}, {"room": "kept", "limit": 1, "cursor": "0"}],
    "system:presence": [{"users": ["ben"]}, {"room": "kept"}],
    "system:typing": [{"room": "kept", "typing": True, "ttl": 3}],
    "system:history": [{"room": "kept"}, {"room": "plain", "limit": 1}],
    "system:resume": [{}, {"rooms": {"kept": {}}}],
    "system:refresh": [{"token": "new"}],
    "system:leave": [{"room": "plain"}],
}


async def test_each_request_is_answered_with_the_fields_of_the_page(th):
    ada, ben = await th.connect(user="ada"), await th.connect(user="ben")
    await ben.join("kept")
    assert set(ASKED) == set(REQUESTS)
    for topic, asked in ASKED.items():
        needed, may = fields(REQUESTS[topic][0])
        must, might = fields(REQUESTS[topic][1])
        seen: set[str] = set()
        for data in asked:
            assert needed <= set(data) <= may, (topic, data)
            answer = set(await ada.request(topic, data)) - {"message_id", "status"}
            assert must <= answer <= might, (topic, answer)
            seen |= answer
        assert seen == might, topic


async def test_the_events_that_no_client_may_publish(th):
    (line,) = re.findall(r"The events (.*?)\s+are refused", PAGE, re.DOTALL)
    ada = await th.connect(user="ada")
    await ada.join("kept")

    for event in names(line):
        with pytest.raises(ValidationError):
            await ada.publish("kept", 1, event=event)
    assert {event for topic, event, _ in SENT if topic.startswith("room:")} <= set(names(line))


def test_the_roles_are_those_of_rooms():
    said = re.search(r"`role` is (.*?);", PAGE, re.DOTALL)
    assert said is not None
    assert names(said[1]) == [role.wire for role in RoomRole]


async def test_what_the_server_says_by_itself_has_the_fields_of_the_page(th):
    ada = await th.connect(user="ada", session=True)
    assert ada.welcome is not None
    heard = []
    await ada.join("kept")
    ben = await th.connect(user="ben")
    await ben.join("kept")
    await ben.typing("kept")
    await ben.leave("kept")
    heard += await ada.received()
    ada.stall()
    for number in range(300):
        await th.hub.broadcast_room("kept", "room:kept", data=number)
    ada.resume_reading()
    heard += await gaps(ada)
    await th.hub.kick("kept", "ada", reason="enough")
    heard += await ada.received()
    await th.hub.shutdown(0)
    heard += await ada.received()

    found = {
        (message.topic.replace(":kept", ":<room>"), message.event, frozenset(message.data))
        for message in heard
    }
    found.add(("system:welcome", "welcome", frozenset(ada.welcome)))
    assert found == {(topic, event, frozenset(fields(data)[0])) for topic, event, data in SENT}


async def gaps(client: TestClient) -> list[Envelope]:
    return [message for message in await client.received() if message.event == "gap"]


# --- handshakes and closes


def statuses() -> dict[str, str]:
    """The status of each reason, as its docstring begins."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.getsource(handshake.RefusalReason)).body[0]
    assert isinstance(body, ast.ClassDef)
    for name, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(name, ast.Assign) and isinstance(text, ast.Expr):
            assert isinstance(name.targets[0], ast.Name)
            said = re.match(r"\d+", ast.literal_eval(text.value))
            reason = RefusalReason[name.targets[0].id].value
            found[reason] = "none" if said is None else said[0]
    return found


def test_the_page_has_every_reason_of_a_refused_handshake_with_its_status():
    found = {
        reason: status for status, reasons, _ in rows("Handshake", 3) for reason in names(reasons)
    }
    assert found == statuses()


def test_the_close_codes_are_those_of_the_code():
    found = {int(c): (names(r), what) for c, r, _, what in rows("Close codes", 4) if c.isdecimal()}

    assert {(code, reason[0]) for code, (reason, _) in found.items() if reason} == {
        (code, reason.value) for reason, code in CLOSE_CODES.items()
    }
    for code, (_, what) in found.items():
        assert what.startswith("comes back" if comes_back(code) else "stays away"), code


# --- the conversation

CONVERSATIONS = re.findall(r"```text\n(.*?)```", section("A conversation"), re.DOTALL)
ANY = "…"


def fits(said: Any, found: Any) -> bool:
    if said == ANY:
        return True
    if isinstance(said, dict):
        same = isinstance(found, dict) and said.keys() == found.keys()
        return same and all(fits(said[key], found[key]) for key in said)
    return bool(said == found)


async def play(text: str, client: Any) -> None:
    got: dict[str, Any] = {}
    for line in text.splitlines():
        said = json.loads(line[2:])
        if line.startswith(">"):
            if said.get("ref") == ANY:
                said["ref"] = got["id"]
            await client.send(json.dumps(said))
        else:
            got = json.loads(await client.recv())
            assert fits(said, got), (line, got)


async def test_the_conversation_is_as_printed():
    server = Server(client_commands=True)
    await server.start(port=0)
    try:
        await server.hub.create_room("lobby", RoomOptions(history_size=10))
        async with websockets.connect(server.url, subprotocols=["eyewall.v1.json"]) as client:
            await play(CONVERSATIONS[0], client)
    finally:
        await server.shutdown(0)


async def test_a_short_ack_settles_a_message():
    server = Server()

    @server.on("go")
    async def go(ctx: Context, msg: Envelope) -> None:
        order = Message("order:shipped", data={"order": 7})
        result = await ctx.hub.request(ctx.conn.id, order)
        await ctx.send("done", data=result)

    await server.start(port=0)
    try:
        async with websockets.connect(server.url) as client:
            await client.send('{"topic": "go"}')
            await play(CONVERSATIONS[1], client)
            assert json.loads(await client.recv())["topic"] == "done"
    finally:
        await server.shutdown(0)
