"""The chat's page in real browser windows, against a real ``eyewall serve``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.entrypoints.chat_support import WITHIN, Window, chromium, serving
from tests.faults.proxy import TcpProxy
from tests.ports import free_port

expect.set_options(timeout=WITHIN * 1000)

TOKENS = {"EYEWALL_AUTH__KIND": "static", "EYEWALL_AUTH__TOKENS": '{"t0p": {"user_id": "Ada"}}'}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def port(browser: Browser) -> Iterator[int]:
    with serving() as port:
        yield port


@pytest.fixture
def proxy(port: int) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", port) as proxy:
        yield proxy


@pytest.fixture
def window(browser: Browser, port: int) -> Iterator[Callable[..., Window]]:
    """Opens windows; at the end none may have complained."""
    windows: list[Window] = []

    def open_window(name: str | None = None, *, at: Any = port, **options: Any) -> Window:
        opened = Window(browser, f"http://127.0.0.1:{at}", **options)
        windows.append(opened)
        return opened.come_in(name) if name else opened

    yield open_window
    for opened in windows:
        opened.context.close()
    # A browser reports what it could not reach, however well the page takes it.
    network = ("WebSocket connection to", "net::ERR_CONNECTION")
    assert not [c for w in windows for c in w.complaints if not any(n in c for n in network)]


def log_of(window: Window) -> Any:
    return window.page.get_by_role("log")


# --- two people


def test_two_people_talk(window):
    ada, ben = window("Ada"), window("Ben")

    ada.say("Is anybody there?")
    expect(log_of(ben)).to_contain_text("Is anybody there?")
    ben.say("I am.")

    expect(log_of(ada)).to_contain_text("I am.")
    expect(log_of(ada).locator(".line", has_text="I am.")).to_contain_text("Ben")
    expect(ada.page.locator("#subtitle")).to_have_text("2 people")
    expect(ada.page.locator("#people button")).to_have_text(
        [re.compile("Ada \\(you\\)"), re.compile("Ben")]
    )


def test_who_comes_and_goes_is_told(window):
    ada, ben = window("Ada"), window("Ben")
    expect(log_of(ada)).to_contain_text("Ben\u2069 came in")

    ben.page.close()

    expect(log_of(ada)).to_contain_text("left")
    expect(ada.page.locator("#subtitle")).to_have_text("1 person")


def test_others_see_who_is_typing(window):
    ada, ben = window("Ada"), window("Ben")

    ada.page.locator("#text").press_sequentially("hm")
    expect(ben.page.locator("#typing")).to_contain_text("Ada\u2069 is typing")
    ada.page.locator("#text").press("Enter")

    expect(ben.page.locator("#typing")).to_be_empty()


def test_a_room_is_created_in_one_window_and_joined_in_the_other(window):
    ada, ben = window("Ada"), window("Ben")

    ada.page.get_by_label("Name of a new room").fill("Plots")
    ada.page.get_by_role("button", name="Create the room").click()
    expect(ada.page.locator("#title")).to_have_text("# plots")
    row = ben.page.locator("#rooms").get_by_role("button", name="plots, 1 person")
    expect(row).to_be_visible()
    row.click()
    expect(ada.page.locator("#subtitle")).to_have_text("2 people")
    ben.say("First chart.")

    expect(log_of(ada)).to_contain_text("First chart.")
    ada.page.get_by_role("button", name="Leave").click()
    expect(ada.page.locator("#title")).to_have_text("# general")
    expect(ben.page.locator("#subtitle")).to_have_text("1 person")


def test_a_message_in_another_room_is_counted_as_unread(window):
    ada, ben = window("Ada"), window("Ben")
    ada.page.get_by_label("Name of a new room").fill("plots")
    ada.page.keyboard.press("Enter")
    expect(ada.page.locator("#title")).to_have_text("# plots")

    ben.say("Ada?")

    general = ada.page.locator("#rooms").get_by_role("button", name="general")
    expect(general).to_have_accessible_name(re.compile("1 unread"))
    expect(ada.page).to_have_title("(1) plots · eyewall")
    general.click()
    expect(ada.page).to_have_title("general · eyewall")


def test_a_private_message_is_marked_delivered(window):
    ada, ben, cleo = window("Ada"), window("Ben"), window("Cleo")

    ada.page.locator("#people").get_by_role("button", name="Ben").click()
    expect(ada.page.locator("#subtitle")).to_have_text("In private, online")
    ada.say("Lunch at one?")

    expect(log_of(ada).locator(".line", has_text="Lunch")).to_contain_text("Delivered")
    ben.page.locator("#privates").get_by_role("button", name="Ada").click()
    expect(log_of(ben)).to_contain_text("Lunch at one?")
    expect(cleo.page.locator("#privates")).not_to_contain_text("Ada")


def test_a_private_message_to_who_has_left_is_marked_failed(window):
    ada, ben = window("Ada"), window("Ben")
    ada.page.locator("#people").get_by_role("button", name="Ben").click()
    ben.page.close()
    alone = ada.page.locator("#rooms").get_by_role("button", name="general, 1 person")
    expect(alone).to_be_visible()

    ada.say("Still there?")
    letter = ada.page.locator(".line.failed")
    expect(letter).to_contain_text("Not delivered")
    window("Ben")
    letter.get_by_role("button", name="Send again").click()

    expect(log_of(ada).locator(".line", has_text="Still there?")).to_contain_text("Delivered")


def test_two_windows_with_one_name_are_one_person(window):
    window("Ada")
    ada = window("Ada")

    expect(ada.page.locator("#subtitle")).to_have_text("1 person")
    expect(ada.page.locator("#people button")).to_have_accessible_name(re.compile("2 windows"))


def test_what_people_write_is_text_and_nothing_else(window):
    """Names, rooms and messages can't become markup."""
    attack = "<img src=x onerror=alert(1)>"
    mallory, ada = window(attack), window("Ada")

    mallory.page.get_by_label("Name of a new room").fill(attack)
    mallory.page.keyboard.press("Enter")
    ada.page.locator("#rooms").get_by_role("button", name="onerror").click()
    expect(mallory.page.locator("#subtitle")).to_have_text("2 people")
    mallory.say(attack)

    expect(log_of(ada).locator(".text")).to_have_text(attack)
    assert ada.page.locator("img").count() == 0


# --- what was said before


def texts_of(window: Window) -> Any:
    return log_of(window).locator(".text")


def told_in(window: Window) -> list[str]:
    """The lines of the log: the texts of messages, and ``--`` for each line that divides them."""
    lines = "e => e.map(l => l.querySelector('.text')?.textContent ?? '--')"
    return list(log_of(window).locator("> li.line, > li.here").evaluate_all(lines))


def test_a_reload_shows_what_was_said(window):
    ada, ben = window("Ada"), window("Ben")
    ada.say("first")
    expect(texts_of(ben)).to_have_text(["first"])
    ben.say("second")
    expect(texts_of(ada)).to_have_text(["first", "second"])

    ada.page.reload()

    expect(texts_of(ada)).to_have_text(["first", "second"])
    expect(log_of(ada).locator(".notice.here")).to_contain_text("Said before you came in")
    expect(log_of(ada).locator(".line.mine")).to_have_text([re.compile("first")])
    ben.say("third")
    expect(texts_of(ada)).to_have_count(3)
    assert told_in(ada) == ["first", "second", "--", "third"]


def test_a_late_comer_sees_who_said_what_and_when(window):
    ada = window("Ada")
    expect(log_of(ada)).to_contain_text("Nothing was said before")
    for text in ("one", "two", "three"):
        ada.say(text)
    expect(texts_of(ada)).to_have_text(["one", "two", "three"])

    ben = window("Ben")

    expect(texts_of(ben)).to_have_text(["one", "two", "three"])
    expect(log_of(ben).locator(".who").first).to_have_text("Ada")
    times = [log_of(w).locator("time") for w in (ada, ben)]
    seen = [each.evaluate_all("e => e.map(t => t.dateTime)") for each in times]
    assert seen[0] == seen[1]
    assert told_in(ben) == ["one", "two", "three", "--"]
    expect(ben.page).to_have_title("general · eyewall")  # nothing of it counts as unread


def away_from(proxy: TcpProxy, window: Window, meanwhile: Callable[[], None]) -> None:
    """Cut a window off, and let it come back when ``meanwhile`` is done."""
    proxy.refuse()
    proxy.cut()
    expect(window.page.locator("#state-word")).to_have_text("Offline")
    meanwhile()
    proxy.resume()
    window.page.evaluate("async () => (await import('/chat.js')).chat.client.connect()")
    expect(window.page.locator("#state-word")).to_have_text("Online", timeout=40_000)


def test_after_a_cut_nothing_is_missing_and_nothing_is_there_twice(window, proxy):
    ada, ben = window("Ada", at=proxy.port), window("Ben")
    ben.say("before")
    expect(texts_of(ada)).to_have_text(["before"])

    def meanwhile() -> None:
        for text in ("while", "away"):
            ben.say(text)
        expect(texts_of(ben)).to_have_text(["before", "while", "away"])

    away_from(proxy, ada, meanwhile)
    away = log_of(ada).locator(".notice", has_text="You were away")
    expect(away).to_contain_text("Nothing is missing")
    ben.say("after")

    expect(texts_of(ada)).to_have_text(["before", "while", "away", "after"])
    expect(away).to_have_count(1)
    away_from(proxy, ada, lambda: None)
    expect(away.last).to_contain_text("Nothing was said meanwhile")
    expect(texts_of(ada)).to_have_count(4)


SAY_MANY = """async (most) => {
    const { chat } = await import("/chat.js");
    const say = (n) => chat.client.request("chat:say", { room: "general", text: `m${n}` });
    for (let n = 0; n < most; n += 40)
        await Promise.all(Array.from({ length: 40 }, (_, more) => say(n + more)));
}"""


def test_what_is_not_kept_any_more_is_told(window, proxy):
    ada, ben = window("Ada", at=proxy.port), window("Ben")
    ben.say("before")
    expect(texts_of(ada)).to_have_text(["before"])

    away_from(proxy, ada, lambda: ben.page.evaluate(SAY_MANY, 120))

    kept = [f"m{n}" for n in range(20, 120)]
    expect(texts_of(ada)).to_have_text(["before", *kept])
    gap = log_of(ada).locator(".notice.gap")
    expect(gap).to_contain_text("something is missing here")
    after = gap.evaluate("e => e.nextElementSibling.querySelector('.text').textContent")
    assert after == "m20"
    cleo = window("Cleo")
    expect(texts_of(cleo)).to_have_text(kept)
    expect(log_of(cleo).locator(".notice").first).to_have_text("Older messages are not kept.")


# --- the door


def test_a_name_that_can_not_be_is_explained(window):
    door = window()

    door.page.get_by_role("button", name="Come in").click()
    expect(door.page.get_by_role("alert").first).to_have_text("Please give a name first.")
    door.page.get_by_label("Your name").fill("x" * 33)
    door.page.keyboard.press("Enter")

    expect(door.page.get_by_role("alert").first).to_contain_text("up to 32")
    expect(door.page.get_by_label("Your name")).to_be_focused()


def test_a_server_that_does_not_let_in_is_explained(window):
    with serving(**TOKENS) as port:
        door = window(at=port)
        door.page.get_by_label("Your name").fill("Mallory")
        door.page.keyboard.press("Enter")

        expect(door.page.locator("#door-note")).to_contain_text("does not let you in")
        expect(door.page.locator("#house")).to_be_hidden()


def test_a_server_that_is_gone_is_explained(window):
    with serving() as port:
        door = window(at=port)
    door.page.get_by_label("Your name").fill("Ada")
    door.page.keyboard.press("Enter")

    expect(door.page.locator("#door-note")).to_contain_text("does not answer")


def test_with_a_token_it_is_the_servers_word_who_one_is(window):
    with serving(**TOKENS) as port:
        ada = window(at=f"{port}/?token=t0p").come_in("Somebody")

        expect(ada.page.locator("#me")).to_have_text("Ada")


def test_a_reload_brings_back_name_rooms_and_what_was_not_sent(window):
    ada = window("Ada")
    ada.page.get_by_label("Name of a new room").fill("plots")
    ada.page.keyboard.press("Enter")
    expect(ada.page.locator("#subtitle")).to_have_text("1 person")
    ada.page.locator("#text").fill("half a thou")

    ada.page.reload()

    expect(ada.page.locator("#title")).to_have_text("# plots")
    expect(ada.page.locator("#text")).to_have_value("half a thou")
    expect(ada.page.locator("#subtitle")).to_have_text("1 person")


# --- the connection


def test_it_comes_back_by_itself_after_a_cut(window, proxy):
    ada, ben = window("Ada", at=proxy.port), window("Ben")
    ada.page.get_by_label("Name of a new room").fill("plots")
    ada.page.keyboard.press("Enter")
    expect(ada.page.locator("#subtitle")).to_have_text("1 person")
    ada.page.locator("#text").fill("half a thou")

    proxy.refuse()
    proxy.cut()
    expect(ada.page.locator("#banner")).to_contain_text("connection is lost")
    expect(ada.page.locator("#state-word")).to_have_text("Offline")
    expect(ada.page.locator("#countdown")).to_contain_text("Next try in")
    ada.page.locator("#text").fill("said while away")
    ada.page.keyboard.press("Enter")
    expect(ada.page.locator(".line.waiting")).to_contain_text("Waits for the connection")
    proxy.resume()
    ada.page.locator("#state-word", has_text="Online").wait_for(timeout=40_000)

    expect(ada.page.locator("#banner")).to_be_hidden()
    expect(log_of(ada)).to_contain_text("You were away")
    expect(log_of(ada)).to_contain_text("said while away")
    expect(ada.page.locator(".line.waiting")).to_have_count(0)
    ben.page.locator("#rooms").get_by_role("button", name="plots").click()
    ben.say("welcome back")
    expect(log_of(ada)).to_contain_text("welcome back")


def test_what_was_on_the_wire_when_the_connection_broke_is_never_said_twice(window, proxy):
    """It has arrived, or the writer is told that nobody knows."""
    ada, ben = window("Ada", at=proxy.port), window("Ben")

    proxy.stall()
    ada.say("into the void")
    expect(ada.page.locator(".line.sending")).to_contain_text("into the void")
    proxy.cut()
    proxy.resume()
    expect(log_of(ada)).to_contain_text("You were away", timeout=40_000)
    ada.say("and on")
    expect(log_of(ben)).to_contain_text("and on")

    heard = log_of(ben).locator(".line", has_text="into the void").count()
    assert heard <= 1
    assert heard == 1 or ada.page.locator(".line.unknown").count() == 1


def test_a_connection_that_is_cut_again_and_again_is_tried_again_and_again(window, proxy):
    ada = window("Ada", at=proxy.port)

    for times in range(1, 4):
        proxy.cut()
        away = log_of(ada).locator(".notice", has_text="You were away")
        expect(away).to_have_count(times, timeout=15_000)

    ada.say("still talking")
    expect(log_of(ada)).to_contain_text("still talking")


def test_it_comes_back_after_the_server_was_started_anew(window, browser):
    """A deploy: the server drains, says goodbye with 1012, and its rooms are gone."""
    port = free_port()
    with serving(port):
        ada = window("Ada", at=port)
        ada.page.get_by_label("Name of a new room").fill("plots")
        ada.page.keyboard.press("Enter")
        expect(ada.page.locator("#subtitle")).to_have_text("1 person")
    expect(ada.page.locator("#state-word")).to_have_text("Offline")
    ada.say("before the doors open")

    with serving(port):
        expect(ada.page.locator("#state-word")).to_have_text("Online", timeout=60_000)
        expect(log_of(ada)).to_contain_text("before the doors open")
        expect(log_of(ada)).to_contain_text("something may be missing here")
        expect(ada.page.locator("#subtitle")).to_have_text("1 person")


def test_who_was_replaced_stays_away_until_asked(window, browser):
    with serving(EYEWALL_MAX_CONNECTIONS_PER_USER="1") as port:
        first = window("Ada", at=port)
        window("Ada", at=port)

        expect(first.page.locator("#banner")).to_contain_text("another window took the place")
        first.page.get_by_role("button", name="Reconnect").click()

        expect(first.page.locator("#state-word")).to_have_text("Online")


def test_try_now_does_not_wait(window, proxy):
    ada = window("Ada", at=proxy.port)
    # Every further try would wait longer than this test.
    ada.page.evaluate("() => { Math.random = () => 60 }")

    proxy.cut()
    ada.page.get_by_role("button", name="Try now").click()

    expect(ada.page.locator("#state-word")).to_have_text("Online")


def test_the_browser_coming_online_ends_the_wait(window, proxy):
    ada = window("Ada", at=proxy.port)
    ada.page.evaluate("() => { Math.random = () => 60 }")

    proxy.cut()
    expect(ada.page.locator("#state-word")).to_have_text("Offline")
    ada.context.set_offline(True)
    ada.context.set_offline(False)

    expect(ada.page.locator("#state-word")).to_have_text("Online")


# --- without a mouse, without much room


def test_everything_can_be_done_by_keyboard(window):
    ben, ada = window("Ben"), window()
    keys = ada.page.keyboard

    expect(ada.page.get_by_label("Your name")).to_be_focused()
    keys.type("Ada")
    keys.press("Enter")
    expect(ada.page.locator("#text")).to_be_focused()
    keys.type("by hand")
    keys.press("Shift+Enter")
    keys.type("and foot")
    keys.press("Enter")
    expect(log_of(ben)).to_contain_text("by hand\nand foot", use_inner_text=True)

    tab_to(ada, "Name of a new room", back=True)
    keys.type("plots")
    keys.press("Enter")
    expect(ada.page.locator("#title")).to_have_text("# plots")
    expect(ada.page.locator("#text")).to_be_focused()

    tab_to(ada, "plots, 1 person", back=True)
    keys.press("ArrowUp")
    keys.press("Enter")
    expect(ada.page.locator("#title")).to_have_text("# general")
    tab_to(ada, "Ben")
    keys.press("Enter")
    expect(ada.page.locator("#title")).to_have_text("Ben")


def tab_to(window: Window, name: str, *, back: bool = False) -> None:
    """Press Tab until what has this name has the focus."""
    for _ in range(30):
        window.page.keyboard.press("Shift+Tab" if back else "Tab")
        focused = window.page.locator(":focus")
        if focused.count() and name in focused.aria_snapshot():
            return
    raise AssertionError(f"no way to {name} by keyboard")


def test_the_focus_can_be_seen(window):
    ada = window("Ada")

    for _ in range(15):
        ada.page.keyboard.press("Tab")
        seen = ada.page.evaluate(
            """() => {
                const at = document.activeElement;
                if (at === document.body) return true;
                const outlined = (e) => e && parseFloat(getComputedStyle(e).outlineWidth) >= 2
                    && getComputedStyle(e).outlineStyle !== "none";
                return outlined(at) || outlined(at.closest(".joined-field, .composer-field"));
            }"""
        )
        assert seen, ada.page.evaluate("() => document.activeElement.outerHTML")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(window, scheme):
    door = window(color_scheme=scheme, **PHONE)
    assert not overflows(door)

    ada = window("A" * 32, color_scheme=scheme, **PHONE)
    ada.say("x" * 300)
    expect(log_of(ada)).to_contain_text("xxx")
    assert not overflows(ada)

    ada.page.get_by_role("button", name="Rooms").tap()
    expect(ada.page.locator("#rooms-panel")).to_be_in_viewport()
    assert not overflows(ada)
    ada.page.keyboard.press("Escape")
    expect(ada.page.get_by_role("button", name="Rooms")).to_be_focused()
    ada.page.get_by_role("button", name="People").tap()
    expect(ada.page.locator("#people")).to_be_in_viewport()
    assert not overflows(ada)


def overflows(window: Window) -> bool:
    return bool(
        window.page.evaluate(
            """() => document.documentElement.scrollWidth > innerWidth
                || [...document.querySelectorAll(".scroll, .panel.open, .door")]
                    .some((e) => e.scrollWidth > e.clientWidth)"""
        )
    )


# --- bounds


def test_the_page_keeps_a_bounded_number_of_messages(window):
    ada = window("Ada")

    for number in range(60):
        ada.page.evaluate(
            """async (first) => {
                const { chat } = await import("/chat.js");
                for (let n = first; n < first + 10; n += 1)
                    chat.current.add({ from: "Ben", text: `m${n}`, at: new Date().toISOString() });
            }""",
            number * 10,
        )

    assert log_of(ada).locator("> li").count() == 500
    expect(log_of(ada).locator("> li").last).to_contain_text("m599")
    # The oldest that is left still says who wrote it.
    assert log_of(ada).locator("> li").first.locator(".line-head").bounding_box()["width"] > 20
