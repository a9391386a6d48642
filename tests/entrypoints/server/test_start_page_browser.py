"""The page of a server that was just begun, in a real browser; the README's console lines on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from eyewall import ConnMeta
from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.server.start_page import MESSAGE
from tests.entrypoints.chat_support import WITHIN, chromium
from tests.entrypoints.server.start_page_support import Running, echoing, run

README = (Path(__file__).parents[3] / "README.md").read_text()

expect.set_options(timeout=WITHIN * 1000)


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with run(echoing()) as here:
        yield here


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, here: Running) -> Iterator[Page]:
    """The page in a window, which must not complain."""
    complaints: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://localhost:{here.port}/")
    expect(page.get_by_role("status")).to_have_text("Connected.")
    yield page
    context.close()
    assert not complaints


def test_a_message_is_typed_and_its_answer_shown(page):
    """It begins with the message that the README's ten lines answer."""
    assert page.get_by_label("A message to the server").input_value() == MESSAGE

    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_role("listitem").first).to_contain_text('"echo":"hello"')

    page.get_by_label("A message to the server").fill("<b>no envelope</b>")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("listitem").first).to_contain_text("invalid_json")
    expect(page.get_by_text("<b>no envelope</b>", exact=True).last).to_be_visible()


def test_the_readmes_lines_for_the_console_work_on_it(page):
    (snippet,) = re.findall(r"```js\n(.*?)```", README, re.DOTALL)
    assert MESSAGE in snippet

    with page.expect_console_message() as said:
        page.evaluate(f"() => {{ {snippet} }}")

    assert '"echo":"hello"' in said.value.text


def test_it_says_when_the_connection_is_gone_and_comes_back_when_told(page, here):
    (conn_id,) = here.server.hub.connection_ids()

    assert here.call(here.server.hub.disconnect_conn(conn_id))
    expect(page.get_by_role("status")).to_have_text("The connection is closed (4503 disconnected).")
    page.get_by_role("button", name="Connect again").click()
    expect(page.get_by_role("status")).to_have_text("Connected.")


def test_a_server_that_lets_nobody_in_is_told_from_one_that_is_gone(browser):
    with run(echoing(authenticator=lambda handshake: None)) as here:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{here.port}/")
        expect(page.get_by_role("status")).to_have_text(
            "The server did not let this page in (1006); its log says why."
        )
        page.close()


TOKENS = StaticAuthenticator({"s3cret & of ada": ConnMeta(user_id="ada")})


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with run(echoing(authenticator=TOKENS)) as here:
        yield here


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_a_token_of_its_own_address_is_passed_on(browser, guarded, name):
    page = browser.new_page()

    page.goto(f"http://localhost:{guarded.port}/?{name}=s3cret%20%26%20of%20ada")

    expect(page.get_by_role("status")).to_have_text("Connected.")
    assert guarded.server.hub.user_connections("ada")
    assert "s3cret" not in page.inner_text("body")
    page.close()


def test_a_token_can_be_typed(browser, guarded):
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://localhost:{guarded.port}/")
    expect(page.get_by_role("status")).to_contain_text("did not let this page in")

    page.get_by_label("A token").fill("s3cret & of ada")
    page.get_by_role("button", name="Connect with it").click()

    expect(page.get_by_role("status")).to_have_text("Connected.")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("listitem").first).to_contain_text('"echo":"hello"')
    page.get_by_label("A token").fill("")
    page.get_by_role("button", name="Connect with it").click()
    expect(page.get_by_role("status")).to_contain_text("did not let this page in")
    assert not complaints
    page.close()
