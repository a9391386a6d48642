"""What is refused at the handshake leaves a trace, and no secret in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback

import jwt
import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from eyewall import (
    ConnMeta,
    Forbidden,
    Overloaded,
    RateLimited,
    Server,
    Unauthorized,
    Unavailable,
)
from eyewall.adapters.auth.jwt import JwtAuthenticator
from eyewall.adapters.auth.static import StaticAuthenticator
from eyewall.adapters.web.http import refusals
from tests.entrypoints.doorstep import EMBEDDED, Place, serving
from tests.entrypoints.house import by_name
from tests.entrypoints.wire import UNIT, eventually, peer

SECRET = "s3cret"


def raises(error):
    def fail(handshake):
        raise error

    return fail


def shows(handshake):
    """Every credential that there is; ``?fails=`` says how."""
    found = [
        *(handshake.query[name] for name in ("token", "sid") if name in handshake.query),
        *handshake.headers.all("Authorization"),
        *handshake.cookies.values(),
        *handshake.subprotocols,
    ]
    return " ".join(found)


def table_of_tokens(handshake):
    return {}[shows(handshake)]


def from_another(handshake):
    try:
        table_of_tokens(handshake)
    except KeyError as error:
        raise ValueError("no user") from error


class Unshowable(Exception):
    def __str__(self):
        raise ValueError(self.args[0])


def unshowable(handshake):
    raise Unshowable(shows(handshake))


@EMBEDDED
@pytest.mark.parametrize(
    "changes",
    [
        {"path": "/ws?token=s3cret-t0ken"},
        {"path": "/ws?token=s3cret%20t0ken'"},
        {"path": "/ws?other=1&sid=s3cret-t0ken"},
        {"Authorization": "Bearer s3cret-t0ken"},
        {"Authorization": "s3cret-t0ken"},
        {"Cookie": "a=1; sid=s3cret-t0ken"},
        {"Sec_WebSocket_Protocol": "bearer, s3cret-t0ken"},
    ],
)
@pytest.mark.parametrize("authenticator", [table_of_tokens, from_another, unshowable])
async def test_an_authenticator_that_fails_with_the_token_in_its_text_shows_none(
    embedded, changes, authenticator
):
    async with serving(embedded=embedded, authenticator=authenticator) as here:
        path = changes.get("path", "/ws")
        assert (await here.status(path, **{k: v for k, v in changes.items() if k != "path"}))[
            0
        ] == 500

        [fields] = [f for _, event, f in here.log.entries if event == "authenticator_failed"]
        error = fields.get("exc_info")
        text = f"{fields}" + ("".join(traceback.format_exception(error)) if error else "")
        assert authenticator.__name__ in text  # where it failed is shown
        assert SECRET not in text


@pytest.mark.parametrize("token", ["", "?token=1", "?token=nothing-of-it"])
async def test_an_error_without_a_token_in_its_text_is_handed_on_as_it_is(token):
    error = ValueError("no1")
    async with serving(authenticator=raises(error)) as here:
        assert (await here.status(f"/ws{token}"))[0] == 500

        assert here.log.fields("authenticator_failed")["exc_info"] is error


@EMBEDDED
@pytest.mark.parametrize(
    ("options", "changes", "status", "reason"),
    [
        ({}, {"Upgrade": None}, 426, "not_an_upgrade"),
        ({}, {"method": "OPTIONS"}, 426, "not_an_upgrade"),
        ({}, {"method": "HEAD"}, 426, "not_an_upgrade"),
        ({}, {"version": "1.0"}, 426, "not_an_upgrade"),
        ({}, {"Sec_WebSocket_Key": "short"}, 400, "key"),
        ({}, {f"X_{n}": "1" for n in range(200)}, 431, "headers"),
        ({}, {"Origin": "https://evil.example"}, 403, "origin"),
        ({"check_origin": lambda o, h: 1 / 0}, {"Origin": "x"}, 500, "origin_check_failed"),
        ({"allowed_hosts": ["other"]}, {}, 403, "host"),
        ({"authenticator": lambda handshake: None}, {}, 401, "unauthorized"),
        ({"authenticator": raises(Unauthorized("no"))}, {}, 401, "unauthorized"),
        ({"authenticator": raises(Unavailable("no"))}, {}, 503, "unavailable"),
        ({"authenticator": raises(Overloaded("no"))}, {}, 503, "overloaded"),
        ({"authenticator": raises(RateLimited(1.0))}, {}, 503, "rate_limited"),
        ({"authenticator": raises(ValueError("no"))}, {}, 500, "authenticator_failed"),
        ({"authenticator": raises(asyncio.CancelledError())}, {}, 500, "authenticator_failed"),
        ({"authenticator": raises(SystemExit(1))}, {}, 500, "authenticator_failed"),
        ({"max_connections": 0}, {}, 503, "connections"),
        ({}, {"method": "BREW"}, 405, "malformed"),
    ],
)
async def test_every_refusal_is_counted_and_logged(embedded, options, changes, status, reason):
    if options.get("max_connections") == 0:
        options = {"max_connections": 1}
    async with serving(embedded=embedded, **options) as here, contextlib.AsyncExitStack() as stack:
        if "max_connections" in options:
            await stack.enter_async_context(peer(here.url))
        assert (await here.status(**changes))[0] == status

        (line,) = here.lines()
        assert (line["status"], line["reason"]) == (status, reason)
        assert (line["host"], line["address"]) == ("here", "127.0.0.1")
        assert line["origin"] == changes.get("Origin")
        assert here.server.hub.stats().refused == {reason: 1}
        assert here.metrics.reasons == [reason]


KEY = "a shared secret of more than thirty-two characters"
JWT = JwtAuthenticator(KEY, algorithms=["HS256"], audience="desk", issuer="login")
FOR_US = {"sub": "ada", "exp": 4_000_000_000, "aud": "desk", "iss": "login"}
STATIC = StaticAuthenticator({"s3cret-of-ada": ConnMeta(user_id="ada")})


def signed(key=KEY, without=(), **claims):
    claims = FOR_US | claims
    return jwt.encode({k: v for k, v in claims.items() if k not in without}, key, "HS256")


def quoting(handshake):
    raise Unauthorized(f"no user has {handshake.query['token']}")


def quoting_a_part(handshake):
    raise Forbidden(f"no user has {handshake.query['token'][4:30]}...")


async def unpaid(handshake):
    raise Unauthorized("the subscription has ended")


@pytest.mark.parametrize("refuse_with", ["http", "close"])
@pytest.mark.parametrize(
    ("authenticator", "token", "hint"),
    [
        (JWT, "", "a token is needed"),
        (JWT, signed(aud="s3cret-shop"), "the token is for another audience"),
        (JWT, signed(iss="s3cret-else"), "the token is from another issuer"),
        (JWT, signed(exp=1_000_000_000), "the token has expired"),
        (JWT, signed("another key that has thirty-two characters"), "signed with another key"),
        (JWT, signed(without=["exp"]), "the token lacks the claim exp"),
        (JWT, signed(without=["sub"]), "the token lacks the claim sub"),
        (JWT, signed(without=["aud"]), "the token lacks the claim aud"),
        (JWT, signed(roles=[{"s3cret": 1}]), "the claim roles of the token has a wrong form"),
        (JWT, "s3cret.s3cret.s3cret", "the token is not valid"),
        (STATIC, "s3cret-of-ben", "the token is not known"),
        (lambda handshake: None, "s3cret-of-ben", "the authenticator returned None"),
        (unpaid, "s3cret-of-ben", "the subscription has ended"),
        (quoting, "s3cret-of-ben", "no user has ***"),
        (quoting_a_part, signed(), None),
        (raises(Unauthorized()), signed(), None),
    ],
)
async def test_the_log_says_why_the_authenticator_said_no(refuse_with, authenticator, token, hint):
    """And nothing of the token, or of what its claims say."""
    options = {"refuse_with": refuse_with, "authenticator": authenticator}
    async with serving(**options) as here:
        status, answer = await here.status(f"/ws?token={token}")

        assert status == (401 if refuse_with == "http" else 101)
        await eventually(lambda: here.lines())
        (line,) = here.lines()
        assert (line["reason"], line["status"]) == ("unauthorized", status)
        assert "hint" in line if hint else "hint" not in line
        assert (hint or "") in line.get("hint", "")
        assert (hint or "?") not in answer
        assert SECRET not in f"{line}"
        assert not token or token not in f"{line}"


@pytest.mark.parametrize("error", [Unavailable, Overloaded])
async def test_what_could_not_be_decided_has_a_hint_too(error):
    async with serving(authenticator=raises(error("the users' table is away"))) as here:
        assert (await here.status())[0] == 503

        assert here.lines()[0]["hint"] == "the users' table is away"


@pytest.mark.parametrize("quoted", ["s3cret-pass", "ada:s3cret-pass", "YWRhOnMzY3JldC1wYXNz"])
async def test_a_password_is_in_no_hint(quoted):
    async with serving(authenticator=raises(Unauthorized(f"not {quoted}"))) as here:
        await here.status(Authorization="Basic YWRhOnMzY3JldC1wYXNz")

        assert here.lines()[0]["hint"] == "not ***"


@EMBEDDED
async def test_a_handshake_that_takes_too_long_is_counted_and_logged(embedded):
    async def hang(handshake):
        await asyncio.Event().wait()

    options = {"handshake_timeout": 0.2 * UNIT, "authenticator": hang}
    async with serving(embedded=embedded, **options) as here:
        with pytest.raises(asyncio.IncompleteReadError):
            await here.status()

        assert [(line["status"], line["reason"]) for line in here.lines()] == [(None, "timeout")]
        assert here.server.hub.stats().refused == {"timeout": 1}


async def test_behind_a_proxy_that_is_trusted_the_client_s_address_is_told():
    async with serving(trusted_proxies=["127.0.0.1"], authenticator=lambda h: None) as here:
        await here.status(X_Forwarded_For="203.0.113.7")
        await here.status(Upgrade=None, X_Forwarded_For="203.0.113.8")

        assert [line["address"] for line in here.lines()] == ["203.0.113.7", "203.0.113.8"]


async def test_of_a_flood_some_lines_are_written_and_the_others_are_counted(monkeypatch):
    """Of one reason only: what else is refused meanwhile can still be seen."""
    monkeypatch.setattr(refusals, "PERIOD", 0.5 * UNIT)
    async with serving() as here:
        for _ in range(refusals.LINES + 20):
            await here.status(Upgrade=None)
        await here.status(Origin="https://evil.example")

        reasons = [line["reason"] for line in here.lines()]
        written = reasons.count("not_an_upgrade")
        assert written < refusals.LINES + 20
        assert "origin" in reasons
        stats = here.server.hub.stats().refused
        assert stats == {"not_an_upgrade": refusals.LINES + 20, "origin": 1}

        def told():
            return [f for _, event, f in here.log.entries if event == "handshakes_refused"]

        await eventually(
            lambda: sum(f["left_out"] for f in told()) == refusals.LINES + 20 - written
        )
        assert {f["reason"] for f in told()} == {"not_an_upgrade"}


async def test_what_was_left_out_is_told_at_the_end_at_the_latest(monkeypatch):
    monkeypatch.setattr(refusals, "LINES", 1)
    async with serving() as here:
        for _ in range(3):
            await here.status(Upgrade=None)
        await here.server.shutdown(timeout=1)

        assert here.log.fields("handshakes_refused") == {"reason": "not_an_upgrade", "left_out": 2}


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("https://a.example\x1b[31m", r"https://a.example\x1b[31m"),
        ("https://\xe4.example", r"https://\xe4.example"),
        ("https://a.example?token=s3cret", "https://a.example"),
        ("https://ada:s3cret@a.example", "https://a.example"),
        ("x" * 5000, "x" * refusals.MAX_SHOWN_CHARACTERS + "..."),
    ],
)
def test_what_a_client_chose_is_bounded_and_forges_no_line(origin, shown):
    assert refusals.sanitized(origin) == shown


# --- who comes and goes


@EMBEDDED
async def test_who_comes_and_goes_is_logged_for_those_who_look_closely(embedded):
    async with serving(embedded=embedded, authenticator=by_name) as here:
        async with peer(f"{here.url}?name=ada"):
            (conn_id,) = here.server.hub.connection_ids()
        await eventually(lambda: "disconnected" in here.log.of("debug"))

        assert here.log.fields("connected") == {"conn_id": conn_id, "user_id": "ada"}
        gone = here.log.fields("disconnected")
        assert gone == {"conn_id": conn_id, "user_id": "ada", "reason": "client_closed"}
        assert here.log.of("info") == ([] if embedded else ["listening"])


# --- secrets


def complete(secret):
    return {
        "path": f"/ws?token={secret}&{secret}",
        "Authorization": f"Bearer {secret}",
        "Cookie": f"session={secret}",
        "Sec_WebSocket_Protocol": f"bearer.{secret}",
    }


@EMBEDDED
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"authenticator": lambda handshake: None},
        {"authenticator": raises(ValueError("no"))},
        {"authenticator": lambda handshake: repr(handshake) and 1 / 0},
        {"check_origin": lambda origin, handshake: 1 / 0},
        {"allowed_hosts": ["other"]},
    ],
    ids=["let in", "refused", "failed", "shown", "origin check failed", "host"],
)
@pytest.mark.parametrize("target", ["", "ws://ada:s3cret@here"], ids=["path", "url"])
async def test_no_log_shows_the_token_of_a_handshake(embedded, options, target, caplog):
    """Neither ours nor the access log and the tracebacks of the application around it."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    async with serving(embedded=embedded, **options) as here:
        said = complete(SECRET)
        status, answer = await here.status(f"{target}{said.pop('path')}", Origin="http://x", **said)
        assert status in {101, 401, 403, 500}
        assert SECRET not in answer
        with contextlib.suppress(Exception):
            await here.status("/ws/elsewhere", **said)
        assert (await here.status(f"/ws?token={SECRET}", method="BREW"))[0] == 405

    logged = "".join(record.getMessage() + str(record.exc_text or "") for record in caplog.records)
    assert SECRET not in logged
    assert SECRET not in repr(here.log.entries)
    if embedded:
        access = [r.getMessage() for r in caplog.records if r.name == "tornado.access"]
        assert any(f"{status} GET /ws?*** (127.0.0.1)" in line for line in access)


async def test_an_access_log_that_fails_keeps_nobody_out():
    """The application's own function is called after the answer."""

    def fail(handler):
        raise SystemExit(f"{handler.request.uri}: the disk is full")

    server = Server()
    sock, port = bind_unused_port()
    http = HTTPServer(Application(server.routes(), log_function=fail))
    http.add_sockets([sock])
    try:
        async with server, peer(f"ws://127.0.0.1:{port}/ws"):
            here = Place(server, port, None, None)
            assert (await here.status(Upgrade=None))[0] == 426
            assert len(server.hub.connection_ids()) == 1
    finally:
        http.stop()
        await http.close_all_connections()
