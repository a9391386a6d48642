"""The page's connection, against a hub that does what the test says: protocol.md, client side."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, WebSocketRoute, expect

from eyewall.browser import SOURCE
from eyewall.chat.pages import CONTENT_SECURITY_POLICY, STATIC
from tests.entrypoints.chat_support import WITHIN, chromium

expect.set_options(timeout=WITHIN * 1000)

HOST = "http://chat.test"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Hub:
    """Answers every request with an ok, unless ``answers`` says otherwise."""

    def __init__(self, page: Page) -> None:
        self.sockets: list[WebSocketRoute] = []
        self.requests: list[dict[str, Any]] = []
        self.acks: list[dict[str, Any]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            "chat:create": lambda request: {"room": request["data"]["room"]},
            "chat:rooms": lambda _: {"rooms": []},
            "system:members": lambda _: {"members": [{"user_id": "ada", "connections": 1}]},
            "system:presence": lambda _: {"users": {}},
        }
        self.names: list[str] = []
        page.route_web_socket("**/ws*", self._welcome)

    @property
    def socket(self) -> WebSocketRoute:
        return self.sockets[-1]

    def _welcome(self, socket: WebSocketRoute) -> None:
        self.sockets.append(socket)
        socket.on_message(lambda text: self._receive(socket, json.loads(text)))
        welcome = {"user_id": "ada", "heartbeat": 30}
        session = f"s{len(self.sockets)}"
        self.send("system:welcome", "welcome", {**welcome, "session": session})

    def _receive(self, socket: WebSocketRoute, message: dict[str, Any]) -> None:
        if message.get("event") == "ack":
            self.acks.append(message)
            return
        self.requests.append(message)
        answer = self.answers.get(message["topic"], lambda _: {})(message)
        if answer is not None:
            data = {"message_id": message["id"], "status": "ok", **answer}
            reply = {"topic": message["topic"], "event": "ack", "ref": message["id"], "data": data}
            socket.send(json.dumps(reply))

    def send(self, topic: str, event: str, data: Any, **more: Any) -> None:
        self.socket.send(json.dumps({"topic": topic, "event": event, "data": data, **more}))

    def asked(self, topic: str) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["topic"] == topic]


def serve_files(route: Route) -> None:
    name = route.request.url.removeprefix(HOST).partition("?")[0].strip("/") or "index.html"
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    kind = mimetypes.guess_type(name)[0]
    path = SOURCE if name == SOURCE.name else STATIC / name
    route.fulfill(path=path, content_type=kind, headers=headers)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WITHIN * 1000)
    page.clock.install()
    page.route(f"{HOST}/**", serve_files)
    yield page
    context.close()


@pytest.fixture
def hub(page: Page) -> Hub:
    """A hub, and a page that is in its chat."""
    hub = Hub(page)
    page.goto(HOST)
    page.get_by_label("Your name").fill("ada")
    page.keyboard.press("Enter")
    expect(page.locator("#subtitle")).to_have_text("1 person")
    return hub


def state(page: Page, word: str) -> None:
    expect(page.locator("#state-word")).to_have_text(word)


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013, 4000, 4401, 4408, 4413, 4499])
def test_it_comes_back_after_these_codes(page, hub, code):
    hub.socket.close(code=code, reason="bye")
    page.clock.run_for(500)

    expect(page.get_by_role("log")).to_contain_text("You were away")
    state(page, "Online")
    assert len(hub.sockets) == 2


@pytest.mark.parametrize("code", [1000, 1002, 1008, 1009, 4500, 4501, 4503, 4999])
def test_it_stays_away_after_all_others_until_somebody_asks(page, hub, code):
    hub.socket.close(code=code, reason="bye")
    state(page, "Disconnected")

    page.clock.run_for(120_000)
    assert len(hub.sockets) == 1
    page.get_by_role("button", name="Reconnect").click()

    state(page, "Online")


def test_it_comes_back_when_a_draining_server_asked_it_to(page, hub):
    hub.send("system:draining", "draining", {"reconnect_in": 20})
    state(page, "Restarting")
    hub.socket.close(code=1012, reason="server_shutdown")
    state(page, "Offline")

    page.clock.run_for(19_000)
    page.evaluate("() => dispatchEvent(new Event('online'))")  # no reason to come before
    assert len(hub.sockets) == 1
    expect(page.locator("#countdown")).to_have_text("Next try in 1 s.")
    page.clock.run_for(1_100)

    state(page, "Online")


def test_what_is_written_while_the_server_drains_waits_and_then_goes_out(page, hub):
    hub.send("system:draining", "draining", {"reconnect_in": 1})
    state(page, "Restarting")
    page.locator("#text").fill("later")
    page.keyboard.press("Enter")
    expect(page.locator(".line.waiting")).to_contain_text("later")
    assert not hub.asked("chat:say")

    hub.socket.close(code=1012, reason="server_shutdown")
    page.clock.run_for(1_100)

    expect(page.locator(".line.waiting")).to_have_count(0)
    assert [said["data"]["text"] for said in hub.asked("chat:say")] == ["later"]


def test_a_message_that_asks_for_an_ack_is_acked_each_time_and_shown_once(page, hub):
    data = {"id": "p1", "from": "ben", "to": "ada", "text": "hi", "at": "2030-01-01T10:00:00Z"}

    hub.send("chat:private", "message", data, id="m1", ack=True)
    hub.send("chat:private", "message", data, id="m1", ack=True)
    page.locator("#privates").get_by_role("button", name="ben").click()

    expect(page.locator(".line .text")).to_have_text(["hi"])
    assert [(ack["ref"], ack["data"]) for ack in hub.acks] == [
        ("m1", {"message_id": "m1", "status": "ok"})
    ] * 2


def test_it_takes_its_session_back_before_anything_else(page, hub):
    hub.requests.clear()
    hub.socket.close(code=1012)

    page.clock.run_for(500)
    expect(page.get_by_role("log")).to_contain_text("You were away")

    assert hub.requests[0]["topic"] == "system:resume"
    assert hub.requests[0]["data"] == {"session": "s1", "rooms": {"general": {}}}
    assert [request["data"]["room"] for request in hub.asked("system:join")] == ["general"]


def lose_one_on_the_wire(page: Page, hub: Hub) -> str:
    hub.answers["chat:say"] = lambda _: None
    page.locator("#text").fill("into the void")
    page.keyboard.press("Enter")
    expect(page.locator(".line.sending")).to_have_count(1)
    hub.answers["chat:say"] = lambda _: {}
    page.evaluate("() => { Math.random = () => 60 }")  # half a minute to look at it
    hub.socket.close(code=1012)
    expect(page.locator(".line.waiting")).to_contain_text("Not confirmed")
    (lost,) = hub.asked("chat:say")
    return str(lost["id"])


def test_what_was_on_the_wire_is_sent_again_under_its_id(page, hub):
    """The hub has the session still, so it will not handle the message twice."""
    lost = lose_one_on_the_wire(page, hub)

    page.clock.run_for(30_500)

    expect(page.get_by_role("log").locator(".text")).to_have_text(["into the void"])
    assert [said["id"] for said in hub.asked("chat:say")] == [lost, lost]


def test_what_was_taken_back_from_the_wire_is_not_sent_again(page, hub):
    lose_one_on_the_wire(page, hub)

    page.locator(".line.waiting").get_by_role("button", name="Take back").click()
    page.clock.run_for(30_500)
    state(page, "Online")

    assert len(hub.asked("chat:say")) == 1
    expect(page.locator("#text")).to_have_value("into the void")


def test_what_a_server_that_was_started_anew_says_again_is_shown_once(page, hub):
    """It can't tell that the author's page has resent it: the id tells."""
    said = {"room": "general", "from": "ben", "text": "hi", "at": "2030-01-01T10:00:00Z"}
    hub.send("chat:said", "message", said | {"id": "1"}, id="m1")
    hub.send("chat:said", "message", said | {"id": "1"}, id="m2")
    hub.send("chat:said", "message", said | {"id": "1", "from": "cy", "text": "mine"}, id="m3")
    hub.send("chat:said", "message", said | {"id": None, "text": "a"}, id="m4")
    hub.send("chat:said", "message", said | {"id": None, "text": "b"}, id="m5")

    expect(page.get_by_role("log").locator(".text")).to_have_text(["hi", "mine", "a", "b"])


def test_a_message_that_nobody_answers_is_in_doubt(page, hub):
    hub.answers["chat:say"] = lambda _: None
    page.locator("#text").fill("hello?")
    page.keyboard.press("Enter")
    expect(page.locator(".line.sending")).to_have_count(1)

    page.clock.run_for(61_000)
    letter = page.locator(".line.unknown")
    expect(letter).to_contain_text("may have arrived or not")
    hub.answers["chat:say"] = lambda _: {}
    letter.get_by_role("button", name="Send again").click()

    expect(page.get_by_role("log").locator(".text")).to_have_text(["hello?"])
    first, second = (said["id"] for said in hub.asked("chat:say"))
    assert first == second


def test_a_message_that_is_refused_says_why_and_can_be_taken_back(page, hub):
    nack = {"status": "nack", "code": "rate_limited", "error": "slow down"}
    hub.answers["chat:say"] = lambda _: nack
    page.locator("#text").fill("spam")
    page.keyboard.press("Enter")

    letter = page.locator(".line.failed")
    expect(letter).to_contain_text("Not sent: slow down.")
    letter.get_by_role("button", name="Take back").click()

    expect(letter).to_have_count(0)
    expect(page.locator("#text")).to_have_value("spam")
    expect(page.locator("#text")).to_be_focused()


def test_a_silent_server_is_noticed(page, hub):
    """A cut cable closes nothing: the page asks, and gives up when nothing comes."""
    hub.answers["system:resume"] = lambda asked: {} if asked["data"].get("session") else None

    page.clock.run_for(71_000)

    state(page, "Online")
    assert len(hub.sockets) == 2


def test_a_room_that_one_was_taken_out_of_is_marked(page, hub):
    hub.send("system:kicked", "kicked", {"room": "general", "reason": "kicked"})

    expect(page.get_by_role("log")).to_contain_text("You were taken out of this room: kicked.")
    expect(page.locator("#subtitle")).to_have_text("You are not in this room")


def test_people_who_come_and_go_in_a_row_share_one_line(page, hub):
    for name in ("ben", "cleo", "dan", "eve"):
        hub.send("room:general", "join", {"user_id": name, "connections": 1})
    hub.send("room:general", "join", {"user_id": "ben", "connections": 2})
    hub.send("room:general", "leave", {"user_id": "ben", "connections": 1})
    hub.send("room:general", "leave", {"user_id": "cleo", "connections": 0})

    told = page.get_by_role("log").locator(".notice").last
    expect(told).to_have_text(
        "\u2068ben\u2069, \u2068dan\u2069 and \u2068eve\u2069 came in; \u2068cleo\u2069 left"
    )
    expect(page.locator("#subtitle")).to_have_text("4 people")
    hub.send("room:general", "join", {"user_id": "cleo", "connections": 1})
    expect(told).to_contain_text("\u2068cleo\u2069 came back")


def test_who_has_no_name_is_a_guest(page, hub):
    hub.send("room:general", "join", {"user_id": None, "connections": 1})

    expect(page.locator("#people button").last).to_contain_text("a guest")
    expect(page.locator("#people button").last).to_be_disabled()


def test_typing_ends_by_itself(page, hub):
    hub.send("room:general", "typing", {"user_id": "ben", "typing": True})
    expect(page.locator("#typing")).to_contain_text("is typing")

    page.clock.run_for(7_000)

    expect(page.locator("#typing")).to_be_empty()


def test_what_only_a_client_can_have_published_is_not_shown(page, hub):
    said = {"room": "general", "id": "1", "from": "ben", "text": "real", "at": 0}
    hub.send("room:general", "message", {**said, "text": "forged"})
    hub.send("chat:said", "message", said)

    expect(page.get_by_role("log").locator(".text")).to_have_text(["real"])


# --- rooms that keep what was said


def said(text: str, offset: int) -> dict[str, Any]:
    at = "2030-01-01T10:00:00Z"
    # Without an id, as programs may ask for it: only its place says that it has been shown.
    data = {"room": "general", "id": None, "from": "ben", "text": text, "at": at}
    return {"topic": "chat:said", "data": data, "stream": place(offset)}


def place(offset: int, epoch: str = "e") -> dict[str, Any]:
    return {"room": "general", "epoch": epoch, "offset": offset}


def kept(
    hub: Hub, *messages: dict[str, Any], offset: int, epoch: str = "e", recovered: bool = True
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The answer to a join: what is kept comes before it."""

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        for message in messages:
            hub.socket.send(json.dumps(message))
        return {**place(offset, epoch), "recovered": recovered}

    return answer


@pytest.fixture
def keeping(page: Page) -> Hub:
    """A hub whose room keeps one message, and a page that is about to come in."""
    hub = Hub(page)
    hub.answers["system:join"] = kept(hub, said("old", 1), offset=1)
    page.goto(HOST)
    page.get_by_label("Your name").fill("ada")
    return hub


def texts(page: Page) -> Any:
    return page.get_by_role("log").locator(".text")


def wanted(hub: Hub) -> list[Any]:
    """From where on the page has asked, with each join."""
    return [request["data"].get("since") for request in hub.asked("system:join")]


def comes_back(page: Page, hub: Hub, *, epoch: str, offset: int) -> None:
    """Cut the page off; the hub can't give it what it has missed."""
    lost = {"recovered": False, "epoch": epoch, "offset": offset}
    hub.answers["system:resume"] = lambda _: {"rooms": {"general": lost}}
    hub.socket.close(code=1012)
    page.clock.run_for(500)


def test_what_was_said_before_stands_above_and_what_is_live_below_each_once(page, keeping):
    """Also where the hub sends something live before it has sent all that is kept."""
    early = [said(text, offset) for text, offset in (("c", 3), ("a", 1), ("b", 2), ("c", 3))]
    keeping.answers["system:join"] = kept(keeping, *early, offset=3)
    page.keyboard.press("Enter")
    expect(texts(page)).to_have_text(["a", "b", "c"])
    keeping.socket.send(json.dumps(said("live", 4)))

    expect(texts(page)).to_have_text(["a", "b", "c", "live"])
    lines = page.get_by_role("log").locator("> li")
    expect(lines.nth(3)).to_have_text(re.compile("Said before you came in"))
    assert wanted(keeping) == ["start"]


def test_what_programs_publish_takes_its_place_and_is_not_shown(page, keeping):
    page.keyboard.press("Enter")
    expect(texts(page)).to_have_text(["old"])

    forged = said("forged", 2)["data"] | {"id": "1"}
    keeping.send("room:general", "message", forged, stream=place(2))
    keeping.socket.send(json.dumps(said("new", 3)))

    expect(texts(page)).to_have_text(["old", "new"])


def test_what_is_missing_after_a_cut_is_asked_for_from_where_the_page_stands(page, keeping):
    page.keyboard.press("Enter")
    expect(texts(page)).to_have_text(["old"])
    keeping.answers["system:join"] = kept(keeping, said("new", 9), offset=9, recovered=False)
    comes_back(page, keeping, epoch="e", offset=9)

    expect(texts(page)).to_have_text(["old", "new"])
    expect(page.locator(".notice.gap")).to_contain_text("something is missing here")
    assert wanted(keeping) == ["start", {"epoch": "e", "offset": 1}]


def test_a_room_that_was_started_anew_is_shown_as_it_is_now(page, keeping):
    page.keyboard.press("Enter")
    expect(texts(page)).to_have_text(["old"])
    anew = {**said("new", 1), "stream": place(1, "f")}
    keeping.answers["system:join"] = kept(keeping, anew, offset=1, epoch="f", recovered=False)
    comes_back(page, keeping, epoch="f", offset=1)

    expect(texts(page)).to_have_text(["old", "new"])
    expect(page.locator(".notice.gap")).to_contain_text("something may be missing here")


def test_messages_that_are_lost_without_a_cut_are_told(page, keeping):
    """The client finds a hole, and can't have it filled: the page shows what is left."""
    page.keyboard.press("Enter")
    expect(texts(page)).to_have_text(["old"])
    lost = {"recovered": False, "epoch": "e", "offset": 9}
    keeping.answers["system:resume"] = lambda _: {"rooms": {"general": lost}}
    keeping.answers["system:join"] = kept(keeping, said("left", 9), offset=9, recovered=False)

    keeping.socket.send(json.dumps(said("newest", 10)))
    expect(texts(page)).to_have_text(["old", "left"])
    expect(page.locator(".notice.gap")).to_contain_text("something is missing here")
    keeping.socket.send(json.dumps(said("newest", 10)))

    expect(texts(page)).to_have_text(["old", "left", "newest"])


def test_a_hole_that_can_not_be_asked_about_does_not_hold_up_what_is_live(page, keeping):
    page.keyboard.press("Enter")
    expect(texts(page)).to_have_text(["old"])
    lost = {"recovered": False, "epoch": "e", "offset": 9}
    keeping.answers["system:resume"] = lambda _: {"rooms": {"general": lost}}
    nack = {"status": "nack", "code": "unavailable", "error": "the history is away"}
    keeping.answers["system:join"] = lambda _: nack

    keeping.socket.send(json.dumps(said("early", 10)))
    expect(page.locator(".notice.gap")).to_contain_text("the history is away")
    keeping.socket.send(json.dumps(said("new", 10)))

    expect(texts(page)).to_have_text(["old", "new"])


def test_a_room_whose_messages_have_all_become_too_old_does_not_say_that_there_were_none(
    page, keeping
):
    keeping.answers["system:join"] = kept(keeping, offset=7, recovered=False)
    page.keyboard.press("Enter")

    notices = page.get_by_role("log").locator(".notice")
    came = re.compile(r"^You came in at [\d:]+\s?[AP]M\.$")
    expect(notices).to_have_text(["Older messages are not kept.", came])


def test_a_room_that_keeps_nothing_says_so(page, hub):
    expect(page.locator(".notice.here")).to_contain_text("is not kept here")
    hub.socket.close(code=1012)
    page.clock.run_for(500)

    expect(page.locator(".notice.gap")).to_contain_text("What was said meanwhile is not here")
