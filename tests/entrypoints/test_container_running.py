"""Servers as the composition root puts them together, and what clients find there."""

from __future__ import annotations

import re
import sys
import time
from contextlib import asynccontextmanager, closing

import jwt
import pytest
from dependency_injector import providers
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from eyewall import ConnMeta, HeartbeatConfig, QueueConfig, Server
from eyewall.application.ports.extras import needs
from eyewall.container import Container
from eyewall.settings.groups import AuthSettings, LimitSettings, MetricsSettings
from eyewall.settings.settings import Settings
from eyewall.testing.logs import RecordingLogger
from tests.entrypoints.wire import FENCE, peer, raw_peer, running, soon

KEY = "a-key-of-thirty-two-bytes-at-least"
STATIC = AuthSettings(kind="static", tokens={"s3cret": ConnMeta(user_id="ada", roles={"admin"})})
JWT = AuthSettings(kind="jwt", key=KEY, algorithms=("HS256",), audience="hub", roles_claim="may")


def build(**settings):
    return Container(settings=Settings(**settings)).server()


@asynccontextmanager
async def open_server(**settings):
    async with running(build(**settings)) as server:
        yield server


async def knock(server, token=None):
    """The status that a handshake gets."""
    async with raw_peer(server, upgrade=False) as client:
        answer = await client.get(Authorization=token and f"Bearer {token}")
        return answer.status


async def user_of(server, token):
    """The user and the roles of a client with this token."""
    async with peer(server, headers={"Authorization": f"Bearer {token}"}) as client:
        conn = server.hub.connection(client.conn_id)
        return conn.user_id, set(conn.meta.roles)


async def metrics_of(server):
    with closing(AsyncHTTPClient(force_instance=True)) as client:
        return await soon(client.fetch(f"http://127.0.0.1:{server.port}/metrics"))


async def test_settings_of_the_sockets_reach_them():
    origins, proxies = ("https://good.example",), ("127.0.0.1",)
    async with (
        open_server(
            check_origin=origins,
            trusted_proxies=proxies,
            queue=QueueConfig(size=3),
            heartbeat=HeartbeatConfig(interval=4.0),
        ) as server,
        raw_peer(server, upgrade=False) as stranger,
        peer(server, origin=origins[0], headers={"X-Forwarded-For": "9.9.9.9"}) as friend,
    ):
        assert (await stranger.get(Origin="https://evil.example")).status == 403
        assert server.hub.connection(friend.conn_id).meta.ip == "9.9.9.9"
        assert friend.welcome["data"]["heartbeat"] == 4.0
        assert server._transport._io.queue == QueueConfig(size=3)


# --- auth


async def test_without_auth_everybody_comes_in_as_nobody():
    async with open_server() as server, peer(server) as client:
        assert server.hub.connection(client.conn_id).user_id is None


async def test_static_tokens_let_their_owners_in():
    async with open_server(auth=STATIC) as server:
        assert await user_of(server, "s3cret") == ("ada", {"admin"})
        assert await knock(server, "guessed") == 401
        assert await knock(server) == 401


async def test_jwts_are_checked_as_the_settings_say():
    """The key, the algorithms, the audience; and the claims that tell the roles."""
    claims = {"sub": "ben", "aud": "hub", "may": ["write"], "exp": time.time() + 600}

    def token(key=KEY, algorithm="HS256", **changes):
        return jwt.encode(claims | changes, key, algorithm)

    async with open_server(auth=JWT) as server:
        assert await user_of(server, token()) == ("ben", {"write"})
        assert await knock(server, token(key="another-" + KEY)) == 401
        assert await knock(server, token(aud="shop")) == 401
        assert await knock(server, token(key=KEY * 2, algorithm="HS512")) == 401
        assert await knock(server) == 401


# --- metrics


async def test_prometheus_is_reachable_and_counts():
    async with (
        open_server(metrics=MetricsSettings(kind="prometheus")) as server,
        peer(server) as client,
    ):
        await client.request(FENCE)
        answer = await metrics_of(server)

    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"eyewall_connections 1.0" in answer.body
    assert f'route="{FENCE}"'.encode() in answer.body


async def test_without_metrics_there_is_no_such_page():
    async with open_server() as server:
        with pytest.raises(HTTPClientError, match="404"):
            await metrics_of(server)


# --- limits


@pytest.mark.parametrize("name", ["rate", "messages_per_second"])
async def test_limits_hold_for_each_user(name):
    """By the older name of the rate, too."""
    async with (
        open_server(limits=LimitSettings(**{name: 0.001}, burst=2)) as server,
        peer(server) as client,
    ):
        await client.request(FENCE)
        await client.request(FENCE)

        assert (await client.refused(FENCE))["code"] == "rate_limited"


async def test_without_a_rate_there_is_no_limit():
    async with open_server(limits=LimitSettings(burst=1)) as server, peer(server) as client:
        for _ in range(30):
            await client.request(FENCE)


async def test_a_limit_can_be_switched_off_and_its_rate_stay():
    limits = LimitSettings(kind="none", rate=0.001, burst=1)
    async with open_server(limits=limits) as server, peer(server) as client:
        for _ in range(3):
            await client.request(FENCE)


async def test_a_limiter_that_is_given_counts_more_than_the_settings():
    settings = Settings(limits=LimitSettings(rate=1000.0))
    server = Server.from_settings(settings, limiter=lambda key: 7.0)

    async with running(server), peer(server) as client:
        assert (await client.refused(FENCE))["retry_after"] == 7.0


async def test_the_limiter_may_be_an_own_one():
    container = Container(settings=Settings())
    container.limiter.override(providers.Object(lambda key: 7.0))

    async with running(container.server()) as server, peer(server) as client:
        assert (await client.refused(FENCE))["retry_after"] == 7.0


@pytest.mark.parametrize("embedded", [False, True])
async def test_the_log_says_which_settings_file_was_read(tmp_path, monkeypatch, embedded):
    """In another folder it is another one, or none, and then authentication is off."""
    monkeypatch.chdir(tmp_path)

    async def told(settings):
        log = RecordingLogger()
        server = Server.from_settings(settings, logger=log)
        if embedded:
            server.routes()
        await server.start(port=... if embedded else 0)
        await server.shutdown(timeout=1)
        return log.fields("started" if embedded else "listening")["settings"]

    assert f"no file: there is no {tmp_path / 'eyewall.toml'}" in await told(None)
    assert await told(Settings()) == "no file: a program has built them"
    (tmp_path / "eyewall.toml").write_text("workers = 3")
    assert await told(None) == str(tmp_path / "eyewall.toml")
    (tmp_path / "live.toml").write_text("workers = 3")
    monkeypatch.setenv("EYEWALL_CONFIG", "live.toml")
    assert await told(None) == str(tmp_path / "live.toml")


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ({"jwt"}, "auth.kind = jwt needs the extra eyewall[jwt]: pip install 'eyewall[jwt]'"),
        ({"prometheus_client"}, "metrics.kind = prometheus needs the extra eyewall[prometheus]"),
        (
            {"jwt", "prometheus_client"},
            "auth.kind = jwt with metrics.kind = prometheus "
            + needs("needs", "jwt", "prometheus").removeprefix("needs "),
        ),
    ],
)
def test_all_extras_that_are_missing_are_told_together(monkeypatch, without, told):
    for name in without:
        monkeypatch.setitem(sys.modules, name, None)
    settings = Settings(auth=JWT, metrics=MetricsSettings(kind="prometheus"))

    with pytest.raises(ImportError, match=re.escape(told)):
        Server.from_settings(settings)
    assert Server.from_settings(Settings())
