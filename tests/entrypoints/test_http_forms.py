"""HTTP as it really comes: what clients and proxies make of a handshake."""

from __future__ import annotations

import pytest

from eyewall import ConnMeta, Server, Settings
from eyewall.settings.groups import ServerSettings
from tests.entrypoints.doorstep import EMBEDDED, serving


class Remembers:
    """An authenticator that remembers who knocked."""

    def __init__(self):
        self.handshakes = []

    def authenticate(self, handshake):
        self.handshakes.append(handshake)
        return ConnMeta()


@pytest.fixture
def door():
    return Remembers()


# --- fields


@EMBEDDED
async def test_several_cookie_fields_are_one_list(embedded, door):
    """A proxy passes on what HTTP/2 has split (RFC 9113, 8.2.3)."""
    several = 'a=1; b=2\r\nCookie: c=3\r\ncookie: d=4,5; e="six"'
    async with serving(embedded=embedded, authenticator=door) as here:
        assert (await here.status(Cookie=several))[0] == 101

    (said,) = door.handshakes
    assert dict(said.cookies) == {"a": "1", "b": "2", "c": "3", "d": "4,5", "e": "six"}
    assert said.headers.all("Cookie") == ["a=1; b=2", "c=3", 'd=4,5; e="six"']


@EMBEDDED
async def test_several_fields_of_subprotocols_are_one_offer(embedded, door):
    several = "other, \r\nSec-WebSocket-Protocol: eyewall.v1.msgpack"
    async with serving(embedded=embedded, authenticator=door) as here:
        status, answer = await here.status(Sec_WebSocket_Protocol=several)

    assert status == 101
    assert "Sec-WebSocket-Protocol: eyewall.v1.msgpack\r\n" in answer
    assert door.handshakes[0].subprotocols == ("other", "eyewall.v1.msgpack")


@EMBEDDED
@pytest.mark.parametrize(
    "changes",
    [
        {"Connection": "keep-alive,Upgrade"},
        {"Connection": "keep-alive\r\nConnection: Upgrade"},
        {"Connection": "  UPGRADE\t"},
        {"Upgrade": "  WebSocket "},
        {"Upgrade": "h2c, websocket"},
        {"Sec_WebSocket_Key": "  dGhlIHNhbXBsZSBub25jZQ==\t"},
        {"Expect": "nothing"},
        {"Content_Length": "0"},
    ],
    ids=str,
)
async def test_an_upgrade_may_be_written_in_many_ways(embedded, changes):
    async with serving(embedded=embedded) as here:
        assert (await here.status(**changes))[0] == 101


@EMBEDDED
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Host": None}, 400),
        ({"Host": "here\r\nHost: here"}, 400),
        ({"Host": "he re"}, 400),
        ({"version": "1.0"}, 426),
        ({"version": "2.0"}, 400),
        ({"Sec_WebSocket_Version": "13, 8"}, 426),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: x"}, 400),
        ({"Content_Length": "5\r\nContent-Length: 6"}, 400),
        ({"Transfer_Encoding": "chunked", "Content_Length": "5"}, 400),
    ],
    ids=str,
)
async def test_what_is_ambiguous_is_refused(embedded, changes, status):
    async with serving(embedded=embedded) as here:
        assert (await here.status(**changes))[0] == status


@EMBEDDED
async def test_a_401_says_how_to_come_in(embedded):
    """RFC 9110, 15.5.2: it must."""
    async with serving(embedded=embedded, authenticator=lambda handshake: None) as here:
        status, answer = await here.status()

    assert status == 401
    assert "\r\nWww-Authenticate: bearer\r\n".lower() in answer.lower()


# --- the target


@EMBEDDED
@pytest.mark.parametrize(
    "target",
    [
        "ws://here/ws?a=1",
        "WS://here:80/ws?a=1",
        "http://here/ws?a=1",
        "https://ada:s3cret@here:443/ws?a=1",
        "wss://[::1]:8443/ws?a=1",
    ],
)
async def test_a_target_may_be_the_whole_url(embedded, target, door):
    """RFC 9112, 3.2.2: a server must take it, and the host in it counts."""
    async with serving(embedded=embedded, authenticator=door) as here:
        assert (await here.status(target, Host="another"))[0] == 101

    (said,) = door.handshakes
    assert said.path == "/ws"
    assert dict(said.query) == {"a": "1"}
    host = target.partition("://")[2].partition("/")[0].rpartition("@")[2]
    assert said.headers.all("Host") == [host]


@EMBEDDED
async def test_an_empty_path_is_the_root(embedded):
    async with serving(embedded=embedded, path="/") as here:
        if embedded:
            assert (await here.status("ws://here"))[0] == 101
            assert (await here.status("ws://here?a=1"))[0] == 101
        assert (await here.status("ws://here/nowhere"))[0] == 404


@EMBEDDED
@pytest.mark.parametrize(
    ("target", "origin", "status"),
    [
        ("ws://here/ws", "http://here", 101),
        ("ws://here/ws", "http://evil.example", 403),
        ("ws://here:8080/ws", "http://here:8080", 101),
        ("ws://evil.example@here/ws", "http://evil.example", 403),
        ("ws://here@evil.example/ws", "http://here", 403),
    ],
)
async def test_the_same_origin_is_that_of_the_url(embedded, target, origin, status):
    async with serving(embedded=embedded) as here:
        found, _ = await here.status(target, Host="evil.example", Origin=origin)

    assert found == status


@pytest.mark.parametrize(
    ("pattern", "path", "params"),
    [
        (r"/b/(?P<room>\w+)", "/b/lab", {"room": "lab"}),
        (r"/b/(?P<room>[^/]+)/(?P<seat>\d+)", "/b/caf%C3%A9/7", {"room": "café", "seat": "7"}),
        (r"/b/(\w+)", "/b/lab", {}),
        (r"/b(?:/(?P<room>\w+))?", "/b", {}),
        (r"/b(?:/(?P<room>\w+))?", "ws://here/b/lab", {"room": "lab"}),
        (r"/b/(?P<room>[^/]+)", "ws://here/b/caf%C3%A9", {"room": "café"}),
        (r"/b/(\w+)", "ws://here/b/lab", {}),
    ],
)
async def test_a_path_may_have_groups(pattern, path, params, door):
    async with serving(embedded=True, path=pattern, authenticator=door) as here:
        assert (await here.status(path))[0] == 101
        assert (await here.status("/elsewhere"))[0] == 404

    (said,) = door.handshakes
    assert said.path == path.removeprefix("ws://here")
    assert dict(said.params) == params


async def test_a_group_that_is_no_text_is_refused():
    async with serving(embedded=True, path="/b/(?P<room>[^/]+)") as here:
        assert (await here.status("/b/%FF%FE"))[0] == 400
        assert here.server.hub.stats().refused == {"malformed": 1}


@pytest.mark.parametrize("path", ["/b/(", "/(?P<self>x)", "/(?P<transforms>x)"])
def test_a_path_that_can_t_be_served_is_told_at_once(path):
    with pytest.raises(ValueError, match="routes"):
        Server().routes(path)


# --- hosts


@EMBEDDED
@pytest.mark.parametrize(
    ("host", "status"), [("app.example", 101), ("app.example:8080", 101), ("evil.example", 403)]
)
async def test_only_hosts_that_are_listed_are_served(embedded, host, status):
    """A page under a name that was made to point here is of the same origin, for a browser."""
    async with serving(embedded=embedded, allowed_hosts=["app.example"]) as here:
        found, _ = await here.status(Host=host, Origin=f"http://{host}")
        assert found == status
        if not embedded:
            page, _ = await here.status("/healthz", Host=host)
            assert page == (200 if status == 101 else 403)


def test_the_hosts_may_stand_in_the_settings():
    settings = Settings(server=ServerSettings(allowed_hosts=("app.example",)))

    assert Server.from_settings(settings).options.allowed_hosts == ("app.example",)
    loaded = Settings.load(environ={"EYEWALL_SERVER__ALLOWED_HOSTS": "a.example,b.example"})
    assert loaded.server.allowed_hosts == ("a.example", "b.example")
