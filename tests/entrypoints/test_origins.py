"""Which pages a server lets in, and what it says of those that it does not."""

from __future__ import annotations

import pytest

from eyewall import Forbidden, Server, Settings
from eyewall.settings.settings import SettingsError
from eyewall.testing import TestHub
from tests.entrypoints.doorstep import EMBEDDED, serving

OWN, OTHER, EVIL = "http://here", "https://app.example", "https://evil.example"


@EMBEDDED
@pytest.mark.parametrize(
    ("rule", "let_in"),
    [
        (None, {OWN}),
        ([], {OWN}),
        ([OTHER], {OWN, OTHER}),
        (["self"], {OWN}),
        (["self", OTHER], {OWN, OTHER}),
        (["none"], set()),
        (["*"], {OWN, OTHER, EVIL}),
        (lambda origin, handshake: origin == OTHER, {OTHER}),
    ],
)
async def test_a_list_is_an_addition_and_none_takes_the_own_origin_away(embedded, rule, let_in):
    async with serving(embedded=embedded, check_origin=rule) as here:
        found = {o for o in (OWN, OTHER, EVIL) if (await here.status(Origin=o))[0] == 101}

        assert found == let_in
        assert (await here.status(Origin=None))[0] == 101


@pytest.mark.parametrize(
    ("text", "let_in"),
    [
        ("none", set()),
        ("None", set()),
        ("self", {OWN}),
        (f"self, {OTHER}", {OWN, OTHER}),
        (OTHER, {OWN, OTHER}),
        ("off", {OWN}),
        ("null", {OWN}),
        ("null,", {OWN, "null"}),
    ],
)
async def test_in_a_variable_the_words_mean_the_same(text, let_in):
    settings = Settings.load(environ={"EYEWALL_CHECK_ORIGIN": text})
    rule = Server.from_settings(settings).options.check_origin
    async with serving(check_origin=rule) as here:
        for origin in (OWN, OTHER, EVIL, "null"):
            assert (await here.status(Origin=origin))[0] == (101 if origin in let_in else 403)


@pytest.mark.parametrize("said", ['"none"', '["none"]', '["self", "https://a.example"]'])
def test_a_file_may_say_the_words_too_and_they_are_shown_as_they_would_be_written(said, tmp_path):
    file = tmp_path / "eyewall.toml"
    file.write_text(f"check_origin = {said}\n")
    settings = Settings.load(file, environ={})
    shown = said if said.startswith("[") else f"[{said}]"

    assert f"check_origin = {shown}" in settings.describe().splitlines()


@pytest.mark.parametrize("rule", [["none", OTHER], ["self", "none"], ["app.example"], [""]])
def test_a_wrong_list_is_told_where_it_is_given(rule):
    with pytest.raises(ValueError, match="check_origin"):
        Server(check_origin=rule)
    with pytest.raises(SettingsError, match="check_origin: expected a list of origins such as"):
        Settings(check_origin=rule)


# --- behind a proxy


@EMBEDDED
@pytest.mark.parametrize(
    ("trusted", "status"), [((), 403), (("10.0.0.0/8",), 403), (("127.0.0.1",), 101)]
)
async def test_a_trusted_proxy_that_changes_the_host_may_say_what_it_was(embedded, trusted, status):
    async with serving(embedded=embedded, trusted_proxies=trusted) as here:
        fields = {"Host": "10.1.2.3:8080", "X_Forwarded_Host": "app.example"}

        assert (await here.status(Origin=OTHER, **fields))[0] == status
        assert (await here.status(Origin=EVIL, **fields))[0] == 403


async def test_what_a_proxy_says_of_the_host_makes_no_host_allowed():
    """A page that was made to point here (DNS rebinding) could ask with that header."""
    options = {"trusted_proxies": ["127.0.0.1"], "allowed_hosts": ["app.example"]}
    async with serving(**options) as here:
        assert (await here.status(Host="evil.example", X_Forwarded_Host="app.example"))[0] == 403


async def test_it_takes_nothing_from_none_and_from_a_callable():
    fields = {"Host": "inner", "X_Forwarded_Host": "app.example", "Origin": OTHER}
    for rule in (["none"], lambda origin, handshake: False):
        async with serving(trusted_proxies=["127.0.0.1"], check_origin=rule) as here:
            assert (await here.status(**fields))[0] == 403


@pytest.mark.parametrize("trusted", [(), ("10.0.0.1",)])
async def test_the_test_kit_sees_the_same_host(trusted):
    headers = {"Host": "inner", "X-Forwarded-Host": "app.example", "Origin": OTHER}
    async with TestHub(Server(trusted_proxies=trusted)) as th:
        if trusted:
            await th.connect(ip="10.0.0.1", headers=headers)
        with pytest.raises(Forbidden):
            await th.connect(ip="10.0.0.2", headers=headers)


# --- what the log says


@EMBEDDED
@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (None, "origin https://evil.example is not Host here: list it in check_origin, or have"),
        ([OTHER], "origin https://evil.example is not Host here, nor in check_origin: list it"),
        (["none"], 'origin https://evil.example is not let in: check_origin is "none"'),
        (lambda *_: False, "check_origin said no to origin https://evil.example"),
    ],
)
async def test_the_line_of_a_refused_page_says_what_is_not_what(embedded, rule, text):
    async with serving(embedded=embedded, check_origin=rule) as here:
        status, answer = await here.status(Origin=EVIL)

        assert (status, "evil" in answer) == (403, False)
        (line,) = here.lines()
        assert line["hint"].startswith(text)
        assert (line["reason"], line["origin"], line["host"]) == ("origin", EVIL, "here")


@EMBEDDED
@pytest.mark.parametrize("path", ["/ws", "/"])
async def test_the_line_of_a_host_that_is_not_served_says_so_too(embedded, path):
    if embedded and path == "/":
        path = "/ws?page=1"  # what else is there is the application's
    async with serving(embedded=embedded, allowed_hosts=["app.example"]) as here:
        assert (await here.status(path))[0] == 403

        assert [line["hint"] for line in here.lines()] == ["Host here is not in allowed_hosts"]


async def test_the_line_says_too_what_a_trusted_proxy_told_of_the_host():
    async with serving(trusted_proxies=["127.0.0.1"]) as here:
        # The proxy leaves the port out: both sides have to be seen to find that.
        await here.status(Origin=f"{OTHER}:8443", X_Forwarded_Host="app.example")

        (line,) = here.lines()
        assert line["hint"].startswith(
            f"origin {OTHER}:8443 is not Host here, nor X-Forwarded-Host app.example: "
        )


async def test_the_hint_shows_no_more_than_the_line_itself():
    async with serving() as here:
        await here.status(Origin="https://ada:s3cret@evil.example?token=s3cret", Host="x" * 500)

        (line,) = here.lines()
        assert "s3cret" not in line["hint"]
        assert len(line["hint"]) < 400


@EMBEDDED
@pytest.mark.parametrize(
    "changes",
    [{"Upgrade": None, "Connection": "close"}, {"version": "1.0"}, {"Connection": "close"}],
)
async def test_a_handshake_that_lost_its_upgrade_on_the_way_is_told_from_a_request(
    embedded, changes
):
    async with serving(embedded=embedded) as here:
        assert (await here.status(**changes))[0] == 426
        assert (await here.status(Upgrade=None, Sec_WebSocket_Key=None))[0] == 426

        hints = [line.get("hint") for line in here.lines()]
        assert hints[0].startswith("a WebSocket handshake came without its upgrade: the proxy")
        assert hints[1] is None
