"""The page about authorization says what the hub does: its support desk is run, and each row
of its table is made to happen."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from eyewall import (
    ConnMeta,
    Forbidden,
    JoinForbidden,
    JoinOptions,
    NotAMember,
    RoomFull,
    RoomOptions,
    Server,
    TokenBucketLimiter,
    ValidationError,
)
from eyewall.application.rooms import membership
from eyewall.domain.errors import EyewallError, code_of
from eyewall.middleware import auth_required
from eyewall.testing import TestClient, TestHub

PAGE = (Path(__file__).parents[1] / "docs" / "authorization.md").read_text()
DESK = next(iter(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
KEY = "a secret of thirty-two characters"

AGENT = ["agent"]
SUPERVISOR = ["agent", "supervisor"]


def desk(**more: Any) -> Server:
    """The page's server, with further keywords."""
    keywords = "".join(f"    {name}={value!r},\n" for name, value in more.items())
    names = {"__name__": "docs"}
    sys.modules.setdefault("docs", type(sys)("docs"))
    code = DESK.replace("    implicit_rooms=False,\n", f"    implicit_rooms=False,\n{keywords}")
    exec(compile(code, "docs", "exec"), names)
    server = names["server"]
    assert isinstance(server, Server)
    return server


def token(user: str, *roles: str) -> str:
    end = datetime.now(UTC) + timedelta(hours=1)
    return jwt.encode({"sub": user, "roles": list(roles), "exp": end}, KEY, "HS256")


async def code(asked: Awaitable[Any]) -> str:
    """What a request is refused with."""
    with pytest.raises(EyewallError) as refusal:
        await asked
    return code_of(refusal.value)


async def status(server: Server, *, origin: str | None = None, bearer: str = "none") -> str:
    """What a handshake through a real socket is refused with."""
    headers = {"Authorization": f"Bearer {bearer}"}
    with pytest.raises(InvalidStatus) as refusal:
        await websockets.connect(server.url, origin=origin, additional_headers=headers)
    return f"HTTP {refusal.value.response.status_code}"


# --- the table, row by row

Case = Callable[[pytest.MonkeyPatch], Awaitable[set[str]]]
CASES: dict[str, Case] = {}


def row(question: str) -> Callable[[Case], Case]:
    def add(case: Case) -> Case:
        CASES[question] = case
        return case

    return add


def rows() -> Iterator[tuple[str, set[str]]]:
    section = PAGE.partition("## What is asked")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].endswith("?"):
            yield cells[0], set(re.findall(r"HTTP \d+|close \d+|(?<=`)\w+(?=`)", cells[2]))


@row("may a page of this origin connect?")
async def origin(_: pytest.MonkeyPatch) -> set[str]:
    server = desk()
    await server.start(port=0)
    try:
        return {await status(server, origin="https://elsewhere.example", bearer=token("ada"))}
    finally:
        await server.shutdown(0)


@row("is there room for one more?")
async def place(_: pytest.MonkeyPatch) -> set[str]:
    server = desk(max_connections=1)
    await server.start(port=0)
    try:
        headers = {"Authorization": f"Bearer {token('ada')}"}
        async with websockets.connect(server.url, additional_headers=headers):
            return {await status(server, bearer=token("bob"))}
    finally:
        await server.shutdown(0)


@row("who is it?")
async def who(_: pytest.MonkeyPatch) -> set[str]:
    bad = token("ada") + "x"
    plain, telling = desk(), desk(refuse_with="close")
    await plain.start(port=0)
    await telling.start(port=0)
    try:
        headers = {"Authorization": f"Bearer {bad}"}
        async with websockets.connect(telling.url, additional_headers=headers) as client:
            await client.wait_closed()
        return {await status(plain, bearer=bad), f"close {client.close_code}"}
    finally:
        await plain.shutdown(0)
        await telling.shutdown(0)


@row("may it stay?")
async def stay(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:

        @th.hub.on_connect
        async def refuse(conn: Any) -> None:
            raise Forbidden("not today")

        await code(th.connect(user="ada"))
        return {closed(th.clients[-1])}


@row("is its token still good?")
async def good(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada", expires_at=th.now() + timedelta(seconds=5))
        await th.advance(6)
        return {closed(ada)}


@row("is it too much?")
async def too_much(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk(), limiter=TokenBucketLimiter(rate=1, burst=1)) as th:
        ada = await th.connect(user="ada")
        assert await code(ada.request("nothing:handles-this")) == "handler_not_found"
        # Asked before all that follows, for the server's own commands too.
        return {
            await code(ada.request("system:presence", {"users": ["ben"]})),
            await code(ada.request("ticket:open")),
        }


@row("may it send to this topic?")
async def send(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada, ben = await th.connect(user="ada"), await th.connect(user="ben", roles=AGENT)
        assert (await ben.request("system:presence", {"users": ["ada"]}))["users"]
        return {await code(ada.request("system:presence", {"users": ["ben"]}))}


@row("may it publish in this room?")
async def publish(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada, eve = await th.connect(user="ada"), await th.connect(user="eve", roles=SUPERVISOR)
        await ada.join("news")
        await eve.join("news")
        await eve.publish("news", "we open at nine")
        assert (await ada.receive()).data == "we open at nine"
        return {await code(ada.publish("news", "me too"))}


@row("is the payload as it should be?")
async def payload(_: pytest.MonkeyPatch) -> set[str]:
    asked: list[tuple[str, str, Any]] = []

    def validate(topic: str, event: str, data: Any) -> None:
        asked.append((topic, event, data))
        if data == "bad":
            raise ValidationError({"_schema": ["bad"]})

    async with TestHub(desk(), validator=validate) as th:
        eve = await th.connect(user="eve", roles=SUPERVISOR)
        await eve.join("news")
        refused = {await code(eve.publish("news", "bad", event="alert"))}
        assert asked[-1] == ("room:news", "alert", "bad")
        return refused


@row("does anything handle it?")
async def handled(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada")
        unknown = await code(ada.request("nothing:handles-this"))
    async with TestHub(desk(), client_commands=False) as th:
        ada = await th.connect(user="ada")
        return {unknown, await code(ada.join("news"))}


@row("does this request need a user?")
async def user(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        nobody = await th.connect(meta=ConnMeta())
        return {await code(nobody.request("ticket:open"))}


@row("does this request need a role?")
async def role(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ben = await th.connect(user="ben", roles=AGENT)
        return {await code(ben.request("desk:kick", {"room": "news", "user": "ada"}))}


@row("may it listen to this room?")
async def listen(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada, bob = await th.connect(user="ada"), await th.connect(user="bob")
        await ada.request("ticket:open")
        asked = bob.request("system:resume", {"rooms": {"ticket-ada": {}}})
        forced = th.hub.join("ticket-ada", bob.id, JoinOptions(force=True))
        return {
            await code(bob.join("ticket-ada")),
            await code(bob.join("ticket-nobody")),  # before it is looked whether it is there
            (await asked)["rooms"]["ticket-ada"]["code"],
            await code(forced),
        }


@row("may it be in one more room?")
async def one_more(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr(membership, "MAX_ROOMS", 1)
    async with TestHub(desk()) as th:
        eve = await th.connect(user="eve", roles=SUPERVISOR)
        await eve.join("news")
        ours = await code(th.hub.join("staff", eve.id))
        with pytest.raises(EyewallError):
            await eve.join("staff")
        return {ours, closed(eve)}


@row("does the room exist?")
async def exists(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ben = await th.connect(user="ben", roles=AGENT)
        return {await code(ben.join("ticket-nobody"))}


@row("is the user banned?")
async def banned(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada")
        await th.hub.update_room("news", capacity=1)
        await th.hub.join("news", (await th.connect(user="bob")).id)
        await th.hub.ban("news", "ada")  # asked before the capacity
        forced = th.hub.join("news", ada.id, JoinOptions(force=True))
        return {await code(ada.join("news")), await code(forced)}


@row("is a seat free?")
async def seat(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada")
        await ada.request("ticket:open")
        for name in ("a1", "a2", "a3"):
            await (await th.connect(user=name, roles=AGENT)).join("ticket-ada")
        late = await th.connect(user="a4", roles=AGENT)
        await th.hub.update_room("staff", capacity=1)
        await (await th.connect(user="a5", roles=AGENT)).join("staff")
        forced = th.hub.join("ticket-ada", late.id, JoinOptions(force=True))
        return {
            await code(late.join("ticket-ada")),
            await code(forced),
            await code(ada.join("staff")),  # before the policy
        }


@row("does the room's policy let it in?")
async def policy(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada, ben = await th.connect(user="ada"), await th.connect(user="ben", roles=AGENT)
        await ben.join("staff")
        return {await code(ada.join("staff")), await code(ben.join("board"))}


@row("is it a member?")
async def member(_: pytest.MonkeyPatch) -> set[str]:
    asked = {
        "publish": {"data": 1},
        "typing": {"typing": True},
        "members": {},
        "history": {},
        "presence": {},
    }
    async with TestHub(desk()) as th:
        eve = await th.connect(user="eve", roles=SUPERVISOR)
        return {
            await code(eve.request(f"system:{name}", {"room": "news", **data}))
            for name, data in asked.items()
        }


@row("may it speak?")
async def speak(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada, eve = await th.connect(user="ada"), await th.connect(user="eve", roles=SUPERVISOR)
        await ada.request("ticket:open")
        await eve.request("desk:listen", {"room": "", "user": "ada"})
        await ada.publish("ticket-ada", "help!")
        assert (await eve.receive()).data == "help!"
        typing = eve.request("system:typing", {"room": "ticket-ada", "typing": True})
        return {await code(eve.publish("ticket-ada", "psst")), await code(typing)}


@row("may clients send this event?")
async def event(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada")
        await ada.request("ticket:open")
        return {
            await code(ada.publish("ticket-ada", {"user_id": "bob"}, event=event))
            for event in ("join", "leave", "typing")
        }


@row("is the new token the same user's?")
async def refresh(_: pytest.MonkeyPatch) -> set[str]:
    async with TestHub(desk()) as th:
        ada = await th.connect(token=token("ada"))
        assert (await ada.request("system:refresh", {"token": token("ada")}))["expires_at"]
        return {await code(ada.request("system:refresh", {"token": token("eve", "supervisor")}))}


def closed(client: TestClient) -> str:
    assert client.closed is not None
    return f"close {client.closed.code}"


ROWS = list(rows())


@pytest.mark.parametrize(("question", "codes"), ROWS, ids=[question for question, _ in ROWS])
async def test_a_question_of_the_table_is_answered_as_it_says(question, codes, monkeypatch):
    assert codes
    assert await CASES[question](monkeypatch) == codes


def test_the_table_has_every_question():
    assert [question for question, _ in ROWS] == list(CASES)


# --- what the page says besides


async def test_a_kick_is_for_now_and_a_ban_for_its_time():
    async with TestHub(desk()) as th:
        ada, eve = await th.connect(user="ada"), await th.connect(user="eve", roles=SUPERVISOR)
        await ada.request("ticket:open")
        whom = {"room": "ticket-ada", "user": "ada"}

        assert (await eve.request("desk:kick", whom))["out"] == 1
        assert (await ada.receive()).data == {"room": "ticket-ada", "reason": "calm down"}
        await th.hub.create_room("ticket-ada", RoomOptions(capacity=4, history_size=200))
        await ada.join("ticket-ada")
        await eve.request("desk:ban", whom)
        assert (await ada.receive()).data == {"room": "ticket-ada", "reason": "banned"}
        with pytest.raises(JoinForbidden):
            await ada.join("ticket-ada")
        await th.advance(3601)

        await ada.join("ticket-ada")
        assert (await eve.request("desk:kick", whom | {"user": "nobody"}))["out"] == 0


async def test_the_rooms_are_there_again_after_a_restart():
    """Each ``TestHub`` has stores of its own, as a process that was started again has."""
    server = desk()
    async with TestHub(server) as th:
        ada = await th.connect(user="ada")
        await ada.request("ticket:open")
    async with TestHub(server) as th:
        ada = await th.connect(user="ada")
        assert (await ada.join("ticket-ada"))["room"] == "ticket-ada"


async def test_the_owner_of_a_ticket_is_looked_up():
    recipe = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(recipe, "docs", "exec"), names)
    async with TestHub(names["server"]) as th:
        ada, ben = await th.connect(user="ada"), await th.connect(user="ben")
        agent = await th.connect(user="cy", roles=AGENT)
        for client in (ada, agent):
            await client.join("ticket-7")
        assert await code(ben.join("ticket-7")) == "forbidden"
        assert await code(agent.join("elsewhere")) == "forbidden"


async def test_an_invite_is_for_once_and_outlives_a_cut():
    async with TestHub(desk()) as th:
        ada, ben = await th.connect(user="ada"), await th.connect(user="ben", roles=AGENT)
        await ben.request("desk:invite", {"room": "board", "user": "ada"})
        await ada.join("board")
        await ada.cut()
        ada = await th.connect(user="ada")
        await ada.join("board")

        await ada.leave("board")

        with pytest.raises(JoinForbidden):
            await ada.join("board")


async def test_force_is_for_one_seat_and_does_not_come_back():
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada", session=True)
        await th.hub.join("staff", ada.id, JoinOptions(force=True))
        session = ada.session
        await ada.cut()
        again = await th.connect(user="ada", session=True)

        answer = await again.request("system:resume", {"session": session, "rooms": {"staff": {}}})

        assert answer["rooms"]["staff"]["code"] == "join_forbidden"


async def test_a_full_room_uses_up_no_invite():
    async with TestHub(desk()) as th:
        ada, bob = await th.connect(user="ada"), await th.connect(user="bob")
        await th.hub.update_room("board", capacity=1)
        for user in ("ada", "bob"):
            await th.hub.invite("board", user)
        await bob.join("board")
        with pytest.raises(RoomFull):
            await ada.join("board")
        await bob.leave("board")

        await ada.join("board")


async def test_roles_count_from_the_next_question_on():
    async with TestHub(desk()) as th:
        ada, eve = await th.connect(user="ada"), await th.connect(user="eve", roles=SUPERVISOR)
        await eve.request("desk:promote", {"room": "", "user": "ada"})
        await ada.join("staff")

        th.hub.set_meta(ada.id, roles=[])

        await ada.publish("staff", "still here")  # rooms are not asked again
        await ada.leave("staff")
        with pytest.raises(JoinForbidden):
            await ada.join("staff")


async def test_another_user_is_asked_for_anew():
    async with TestHub(desk()) as th:
        ada = await th.connect(user="ada")
        await ada.request("ticket:open")
        await ada.join("news")

        th.hub.set_meta(ada.id, user_id="bob")

        assert (await ada.receive()).data == {"room": "ticket-ada", "reason": "forbidden"}
        with pytest.raises(NotAMember):
            await ada.publish("ticket-ada", "me again")
        assert ada.conn.rooms == {"news"}


async def test_middleware_for_all_stands_before_the_commands_too():
    async with TestHub(desk()) as th:
        th.hub.use(auth_required())
        nobody = await th.connect(meta=ConnMeta())

        for topic, data in (
            ("system:join", {"room": "news"}),
            ("system:resume", {"rooms": {"news": {}}}),
        ):
            assert await code(nobody.request(topic, data)) == "unauthorized"


class Broken:
    """An access controller that raises what the test says."""

    error: Exception | None = None

    def can_publish(self, meta: ConnMeta, topic: str, event: str) -> bool:
        if self.error and topic.startswith("ticket:"):
            raise self.error
        return True

    def can_subscribe(self, meta: ConnMeta, room_id: str) -> bool:
        if self.error:
            raise self.error
        return True


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError("no database"), "internal"), (Forbidden("no"), "forbidden")],
)
async def test_a_controller_that_fails_lets_nobody_in(error, expected):
    rules = Broken()
    async with TestHub(desk(), access_controller=rules) as th:
        ada = await th.connect(user="ada")
        rules.error = error

        for asked in (("ticket:open", None), ("system:join", {"room": "news"})):
            await ada.send(*asked, ack=True)
            assert (await ada.receive()).data["code"] == expected

        rules.error = None
        assert ada.conn.rooms == frozenset()
        await ada.join("news")
