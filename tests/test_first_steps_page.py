"""The recipes of the first steps do what the page says of them, and so do their neighbours."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from eyewall import NotAMember, RoomOptions, Server
from eyewall.client.client import TIMEOUT
from eyewall.testing import TestHub

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first-steps.md").read_text()


def recipe(heading: str) -> dict[str, Any]:
    """The names of the first Python block below a heading."""
    _, _, text = PAGE.partition(f"\n## {heading}\n")
    assert text, f"no {heading}"
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "docs"}
    sys.modules.setdefault("docs", type(sys)("docs"))
    exec(compile(found[1], "docs", "exec"), names)
    return names


def served(names: dict[str, Any]) -> Server:
    server = names["server"]
    assert isinstance(server, Server)
    return server


def arrived() -> Server:
    return served(recipe("Did it arrive?"))


def example(name: str) -> Server:
    return served(runpy.run_path(str(ROOT / "examples" / name)))


@pytest.mark.parametrize(
    ("server", "topic", "data", "field"),
    [
        (arrived, "order:ship", {"order": 1, "customer": "bob"}, ("confirmed", 0)),
        (
            lambda: example("private_messages.py"),
            "pm:send",
            {"to": "bob", "text": "hi"},
            ("code", "ack_timeout"),
        ),
        (
            lambda: example("retries.py"),
            "order:ship",
            {"order": 1, "customer": "bob"},
            ("success", True),
        ),
    ],
    ids=["page", "private_messages", "retries"],
)
async def test_that_nobody_confirmed_is_known_while_the_client_waits(server, topic, data, field):
    """Bob's device is silent in all tries; Ada's client has not given up by then."""
    async with TestHub(server()) as th:
        ada, _bob = await th.connect(user="ada"), await th.connect(user="bob")
        asked = await ada.send(topic, data, ack=True)
        assert await ada.received() == []
        await th.advance(TIMEOUT - 0.2)

        (answer,) = await ada.received()
        name, value = field
        assert (answer.ref, answer.data[name]) == (asked, value)


async def test_who_has_got_it_is_told_and_not_kept():
    server = served(recipe("Delivery receipts"))
    async with TestHub(server) as th:
        await th.hub.create_room("desk", RoomOptions(history_size=2))
        ada, bob = await th.connect(user="ada"), await th.connect(user="bob")
        for client in (ada, bob):
            await th.hub.join("desk", client.id)
        for text in ("one", "two"):
            await ada.request("desk:say", {"text": text})
            note = await ada.receive()
            await ada.ack(note)
            await th.advance(31)
            got = [m for m in await ada.received() if m.event == "got"]
            assert got[-1].data == {"message": note.id, "got": ["ada"], "not_yet": ["bob"]}

        kept = (await th.hub.history("desk")).messages
        assert [m.data["text"] for m in kept] == ["one", "two"]


async def test_who_has_read_it_is_told_and_kept_for_each_user():
    names = recipe("Read receipts")
    async with TestHub(served(names)) as th:
        ada, bob = await th.connect(user="ada"), await th.connect(user="bob")
        for client in (ada, bob):
            await client.join("desk")
        await ada.publish("desk", "one")
        note = await bob.receive()
        assert note.stream is not None
        place = {"room": "desk", "epoch": note.stream.epoch, "offset": note.stream.offset}
        await ada.received()

        for _ in range(2):
            await bob.request("chat:read", place)

        (told,) = await ada.received()
        assert (told.event, told.stream) == ("read", None)
        assert told.data == {"user_id": "bob", "epoch": note.stream.epoch, "offset": 1}
        assert names["places"] == {("desk", "bob"): (note.stream.epoch, 1)}
        with pytest.raises(NotAMember):
            await bob.request("chat:read", place | {"room": "hall"})
        assert len((await th.hub.history("desk")).messages) == 1
