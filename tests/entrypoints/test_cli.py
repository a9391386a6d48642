"""The command ``eyewall``, run as its users run it: as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from eyewall.version import VERSION
from tests.ports import free_port

PATIENCE = 40.0  # seconds until a process that should have done something has not

SHOP = """
from eyewall import Server

server = Server()
other = object()

@server.on("price")
async def price(ctx, msg):
    return {"price": 1}

@server.on("broken")
async def broken(ctx, msg):
    raise RuntimeError("no")
"""


def environment(**variables: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EYEWALL_") and k != "PORT"}
    return clean | variables


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eyewall", *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def until(what: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {process.stderr.read()}")
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts ``eyewall serve`` and returns when it listens on ``port``."""
    started: list[subprocess.Popen[str]] = []

    def serve(*arguments: str, port: int, variables: Mapping[str, str] | None = None):
        process = subprocess.Popen(
            [sys.executable, "-m", "eyewall", "serve", *arguments],
            cwd=tmp_path,
            env=environment(**(variables or {})),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that what it starts ends with it
        )
        started.append(process)
        until(lambda: listens(port), process)
        return process

    yield serve
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stderr.close()


async def ask(port: int, topic: str, data=None, tls: ssl.SSLContext | None = None, path="/ws"):
    """The data of the ack to one request."""
    scheme = "wss" if tls else "ws"
    async with connect(f"{scheme}://127.0.0.1:{port}{path}", ssl=tls) as client:
        await client.send(json.dumps({"id": "1", "topic": topic, "data": data, "ack": True}))
        async with asyncio.timeout(PATIENCE):
            async for text in client:
                answer = json.loads(text)
                if answer.get("ref") == "1":
                    return answer["data"]
    return None


# --- version, check-config, and use


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_says_which(tmp_path, asked):
    done = run(asked, cwd=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"eyewall {VERSION}\n", "")


def test_check_config_shows_what_counts_and_no_secret(tmp_path):
    (tmp_path / "eyewall.toml").write_text('workers = 3\n[auth]\nkey = "hunter2"\n')

    done = run("check-config", cwd=tmp_path, EYEWALL_QUEUE__SIZE="7")

    assert (done.returncode, done.stderr) == (0, "")
    assert "workers = 3\n" in done.stdout
    assert "queue.size = 7\n" in done.stdout
    assert 'auth.key = "***"\n' in done.stdout
    assert "hunter2" not in done.stdout


def test_check_config_says_first_which_file_was_read(tmp_path):
    """In another folder it is another one, or none: authentication is off then."""
    done = run("check-config", cwd=tmp_path)
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"# read from no file: there is no {tmp_path / 'eyewall.toml'}")
    assert "--config" in first

    (tmp_path / "live.toml").write_text("workers = 3\n")
    for named in ({"EYEWALL_CONFIG": "live.toml"}, {}):
        arguments = () if named else ("--config", "live.toml")
        done = run("check-config", *arguments, cwd=tmp_path, **named)
        assert done.stdout.splitlines()[0] == f"# read from {tmp_path / 'live.toml'}"


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_a_shared_secret_that_is_too_short_does_not_start(command, tmp_path):
    text = '[auth]\nkind = "jwt"\nkey = "hunter2"\nalgorithms = ["HS256"]\n'
    (tmp_path / "eyewall.toml").write_text(text)

    done = run(command, cwd=tmp_path, PORT="0")

    assert done.returncode == 2
    assert "too short for HS256: it needs at least 32 bytes" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_what_only_a_part_knows_to_be_wrong_is_told_too(command, tmp_path):
    """Whatever ``serve`` would fail on, ``check-config`` says before."""
    done = run(command, cwd=tmp_path, EYEWALL_CHECK_ORIGIN="nonsense", PORT="0")

    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_config_tells_all_mistakes_and_no_secret(tmp_path):
    (tmp_path / "here.toml").write_text('workers = 0\n[auth]\nkey = ["hunter2"]\n')

    done = run("check-config", "--config", "here.toml", cwd=tmp_path, EYEWALL_BUS__KIND="redis")

    assert (done.returncode, done.stdout) == (2, "")
    for told in ("3 mistakes", "workers: ", "auth.key: ", "bus.kind: ", "here.toml"):
        assert told in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_does_not_start_with_wrong_settings(tmp_path):
    done = run("serve", "--port", "http", cwd=tmp_path, EYEWALL_WORKERS="0")

    assert done.returncode == 2
    assert "server.port: " in done.stderr
    assert "workers: " in done.stderr


@pytest.mark.parametrize("arguments", [(), ("fly",), ("serve", "--workers", "2")])
def test_wrong_use_shows_the_right_one(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert "usage: eyewall" in done.stderr


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("shop", "expected MODULE:SERVER"),
        (":server", "expected MODULE:SERVER"),
        ("shop:", "expected MODULE:SERVER"),
        ("shop", "such as shop:server"),
        ("desk", "such as desk:server"),
        ("desk.py", "such as desk:server"),
        ("desk.py:hub", "name the module as it is imported: desk:hub"),
        ("./desk.py:server", "such as desk:server"),
        ("shop/live.py:server", "such as shop.live:server"),
        ("shop/live:server", "such as shop.live:server"),
        ("/srv/desk.py:server", "such as shop:server"),
        ("shop:nothing", "there is no 'nothing' in it"),
        ("shop:server.nothing", "there is no 'nothing' in it"),
        ("shop:other", "its type is object, not Server"),
        ("shp:server", "there is no module 'shp'"),
        ("shop.inner:server", "there is no module 'shop.inner'"),
        ("../shop:server", "expected MODULE:SERVER"),
        ("needs:server", "importing it failed with ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:server", "importing it failed with ZeroDivisionError: division by zero ("),
        ("nonsense:server", "importing it failed with SyntaxError"),
        ("needs_more:server", "not 'a database' (needs_more.py, line 2)"),
        ("runs:server", "a file that is started with python needs no eyewall serve"),
        ("runs:server", 'put run() or start() under if __name__ == "__main__" (runs.py, line 3)'),
        ("starts:server", 'start() under if __name__ == "__main__" (starts.py, line 4)'),
    ],
)  # fmt: skip
def test_what_is_no_server_is_told_in_one_line(tmp_path, place, told):
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "needs.py").write_text("import nowhere")
    (tmp_path / "broken.py").write_text("server = 1 / 0")
    (tmp_path / "nonsense.py").write_text("server =")
    build = "from eyewall import Server\nserver = Server()\n"
    (tmp_path / "needs_more.py").write_text(
        "from eyewall import Server\nserver = Server.from_settings(pubsub='a database')"
    )
    (tmp_path / "runs.py").write_text(f"{build}server.run(port=0)")
    (tmp_path / "starts.py").write_text(f"{build}import asyncio\nasyncio.run(server.start(port=0))")

    done = run("serve", place, cwd=tmp_path)

    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- serve


def test_a_port_in_use_is_told_in_one_line(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), cwd=tmp_path)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"eyewall: port {port} on 127.0.0.1 is in use; take another with --port"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "no..name"])
def test_what_is_no_address_of_this_machine_is_told_in_one_line(tmp_path, host):
    done = run("serve", "--host", host, "--port", "0", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"eyewall: {host} is not an address of this machine"
    assert "Traceback" not in done.stderr


async def test_a_server_of_the_working_folder_is_served_and_ends_in_order(tmp_path, start):
    (tmp_path / "shop.py").write_text(SHOP)
    port = free_port()
    process = start("shop:server", "--port", str(port), port=port)

    answer = await ask(port, "price")
    process.terminate()

    assert answer["price"] == 1
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0


async def test_the_port_may_come_from_the_environment_and_a_flag_beats_it(tmp_path, start):
    (tmp_path / "shop.py").write_text(SHOP)
    port, other = free_port(), free_port()

    start("shop:server", port=port, variables={"PORT": str(port)})
    start("shop:server", "--port", str(other), port=other, variables={"PORT": str(port)})

    assert (await ask(port, "price"))["price"] == 1
    assert (await ask(other, "price"))["price"] == 1


async def test_without_a_server_it_is_the_chat_with_client_commands(start):
    port = free_port()
    start("--port", str(port), port=port)

    page = await asyncio.to_thread(
        lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
    )
    joined = await ask(port, "system:join", {"room": "general"}, path="/ws?name=ada")

    assert "<html" in page
    assert joined["status"] == "ok"
    assert joined["room"] == "general"


def test_the_chat_listens_on_this_machine_only(start):
    port = free_port()
    start("--port", str(port), port=port)

    with closing(socket.socket()) as probe:
        # Another address of this machine, on which a server for all would answer.
        assert probe.connect_ex(("127.0.0.2", port)) != 0


@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
async def test_it_serves_without_a_place_to_log_to(tmp_path, streams):
    """What is lost is the lines: a failing handler is answered, and the end is in order."""
    (tmp_path / "shop.py").write_text(SHOP)
    port = free_port()
    command = f'exec "$0" -m eyewall serve shop:server --port {port} {streams}'
    buffered = environment(PYTHONUNBUFFERED="")  # as Python is, unless told otherwise
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable], cwd=tmp_path, env=buffered, close_fds=True
    ) as process:
        try:
            await asyncio.to_thread(until, lambda: listens(port) or process.poll() is not None)
            assert (await ask(port, "broken"))["code"] == "internal"
            assert (await ask(port, "price"))["price"] == 1
            for number in range(3):
                held = os.readlink(f"/proc/{process.pid}/fd/{number}")
                assert held.startswith(("/", "pipe:")), "it is no file or socket of the server's"
            process.terminate()
            assert await asyncio.to_thread(process.wait, PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["*", ""])
def test_it_may_listen_on_every_address_of_both_families(tmp_path, start, host):
    port = free_port()
    (tmp_path / "shop.py").write_text(SHOP)
    start("shop:server", "--port", str(port), "--host", host, port=port)

    for address in ("127.0.0.1", "127.0.0.2", "::1"):
        socket.create_connection((address, port), PATIENCE).close()


def certificate(folder: Path, name: str) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(folder / f"{name}.crt"), str(folder / f"{name}.key")


async def test_tls_comes_from_the_settings(tmp_path, start):
    (tmp_path / "shop.py").write_text(SHOP)
    cert, key = certificate(tmp_path, "here")
    port = free_port()
    variables = {"EYEWALL_TLS__CERT": cert, "EYEWALL_TLS__KEY": key}
    start("shop:server", "--port", str(port), port=port, variables=variables)
    tls = ssl.create_default_context(cafile=cert)
    tls.check_hostname = False

    assert (await ask(port, "price", tls=tls))["price"] == 1


def test_a_key_that_does_not_fit_its_certificate_is_told_in_one_line(tmp_path):
    cert, _ = certificate(tmp_path, "one")
    _, key = certificate(tmp_path, "other")

    done = run("serve", cwd=tmp_path, EYEWALL_TLS__CERT=cert, EYEWALL_TLS__KEY=key)

    assert done.returncode == 2
    assert "tls.cert and tls.key can't be used" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_reload_serves_what_was_saved_even_after_a_mistake(tmp_path, start):
    """A file saved half-way does not end it: the next save starts the server again."""
    (tmp_path / "shop.py").write_text(SHOP)
    port = free_port()
    process = start("shop:server", "--port", str(port), "--reload", port=port)

    def price() -> int | None:
        try:
            return asyncio.run(ask(port, "price"))["price"]
        except OSError:
            return None

    assert price() == 1
    (tmp_path / "shop.py").write_text(SHOP.replace('"price": 1', '"price": '))
    until(lambda: not listens(port), process)
    (tmp_path / "shop.py").write_text(SHOP.replace('"price": 1', '"price": 22'))
    until(lambda: price() == 22, process)

    (tmp_path / "eyewall.toml").write_text("workers = 0")
    until(lambda: not listens(port), process)
    (tmp_path / "eyewall.toml").write_text("lease = 10.0")
    until(lambda: price() == 22, process)

    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert not listens(port)


# --- what is set reaches the application

JWT = 'max_connections = 7\n[auth]\nkind = "jwt"\nkey = "%s"\nalgorithms = ["HS256"]\n' % ("k" * 32)

FROM_SETTINGS = (
    SHOP.replace("Server()", "Server.from_settings()")
    + """
from eyewall import Settings

@server.on("settings")
async def settings(ctx, msg):
    found = Settings.load()
    return {"host": found.server.host, "port": found.server.port, "max": found.max_connections}
"""
)


async def refusal(port: int, path: str = "/ws") -> int:
    """The status that refuses a client without a token."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://127.0.0.1:{port}{path}"):
            """It must not come to this."""
    return refused.value.response.status_code


@pytest.mark.parametrize("how", ["--config", "--config --reload", "eyewall.toml"])
async def test_an_application_finds_the_settings_that_serve_was_given(tmp_path, start, how):
    """All of them, in the file that is named; flags count more."""
    (tmp_path / "shop.py").write_text(FROM_SETTINGS)
    named = how if how.endswith(".toml") else "conf/live.toml"
    (tmp_path / named).parent.mkdir(exist_ok=True)
    (tmp_path / named).write_text(JWT + "[server]\nport = 1\n")
    port = free_port()
    flags = ["--config", named, *how.split()[1:]] if how.startswith("--") else []
    start("shop:server", "--port", str(port), *flags, port=port)

    assert await refusal(port) == 401
    token = jwt.encode({"sub": "ada", "exp": int(time.time()) + 600}, "k" * 32, "HS256")
    answer = await ask(port, "settings", path=f"/ws?token={token}")
    assert (answer["host"], answer["port"], answer["max"]) == ("127.0.0.1", port, 7)


async def test_where_to_listen_may_come_from_the_file(tmp_path, start):
    """Host, port and TLS, to a plain server and to one from settings alike."""
    cert, key = certificate(tmp_path, "here")
    tls = ssl.create_default_context(cafile=cert)
    tls.check_hostname = False
    for name, text in (("plain", SHOP), ("settings", FROM_SETTINGS)):
        port = free_port()
        (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "live.toml").write_text(
            f'[server]\nport = {port}\n[tls]\ncert = "{cert}"\nkey = "{key}"\n'
        )
        start(f"{name}:server", "--config", "live.toml", port=port)

        assert (await ask(port, "price", tls=tls))["price"] == 1


@pytest.mark.parametrize(
    ("built", "from_what"),
    [
        ("Server()", "Server()"),
        ("Server.from_settings(Settings())", "other settings"),
        ("Server.from_settings(Settings.load('other.toml'))", "other settings"),
        ("Server.from_settings(Settings.load('open.toml'))", "other settings"),
    ],
)
def test_a_server_that_ignores_what_is_set_does_not_start(tmp_path, built, from_what):
    """It would serve whoever comes, say, where the file asks for tokens."""
    text = SHOP.replace("Server()", built).replace("import Server", "import Server, Settings")
    (tmp_path / "shop.py").write_text(text)
    (tmp_path / "other.toml").write_text("workers = 3\n[logging]\nkind = 'json'\n")
    (tmp_path / "open.toml").write_text(
        f'max_connections = 8\n[auth]\nkind = "none"\nkey = "{"o" * 32}"\n'
    )
    (tmp_path / "live.toml").write_text(
        JWT + "[server]\nport = 0\n[logging]\nlevel = 'debug'\n[limits]\nburst = 3\n"
    )
    done = run("serve", "shop:server", "--config", "live.toml", cwd=tmp_path)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"shop:server was built from {from_what} and ignores" in done.stderr
    for key in ("max_connections", "auth.kind", "auth.key", "logging.level", "limits.burst"):
        assert f"{key} (live.toml)" in done.stderr
    assert "Server.from_settings()" in done.stderr
    for not_told in ("server.port", "k" * 32, "Traceback"):
        assert not_told not in done.stderr


def test_variables_that_a_plain_server_ignores_are_named_too(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    variables = {"EYEWALL_AUTH__KIND": "jwt", "EYEWALL_AUTH__ALGORITHMS": "HS256"}

    done = run("serve", "shop:server", cwd=tmp_path, EYEWALL_AUTH__KEY="hunter2" * 5, **variables)

    assert done.returncode == 2
    assert "auth.kind (EYEWALL_AUTH__KIND)" in done.stderr
    assert "hunter2" not in done.stderr


async def test_settings_that_say_what_a_plain_server_does_anyway_don_t_matter(tmp_path, start):
    """Such as all that ``check-config`` has shown, kept as a file to start from."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "eyewall.toml").write_text(run("check-config", cwd=tmp_path).stdout)
    port = free_port()
    start("shop:server", port=port, variables={"PORT": str(port), "EYEWALL_TEST_TIME_UNIT": "2"})

    assert (await ask(port, "price"))["price"] == 1


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("max_message_size=1 << 24", "max_message_size"),
        ("check_origin=['*']", "check_origin"),
        ("allowed_hosts=['a']", "server.allowed_hosts"),
        ("refuse_with='close'", "refuse_with"),
        ("ops_port=0", "ops.port"),
        ("queue=QueueConfig(size=9)", "queue.size"),
        ("authenticator=lambda handshake: None", "auth.kind"),
    ],
)
def test_a_keyword_of_the_server_against_what_is_set_is_told(tmp_path, given, key):
    """Though what is set is the default: somebody wants it so."""
    (tmp_path / "shop.py").write_text(
        f"from eyewall import QueueConfig, Server\nserver = Server({given})"
    )
    (tmp_path / "live.toml").write_text(
        'refuse_with = "http"\ncheck_origin = "off"\nmax_message_size = 1048576\n'
        '[server]\nport = 0\nallowed_hosts = "off"\n[ops]\nport = "off"\n'
        '[queue]\nsize = 256\n[auth]\nkind = "none"\n'
    )
    done = run("serve", "shop:server", "--config", "live.toml", cwd=tmp_path)

    assert done.returncode == 2
    assert f"ignores what is set: {key} (live.toml). Build" in done.stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "KEY_VALUES_MISMATCH"), (b"no key", "not in PEM"), ("locked", "has a passphrase")],
)
def test_check_config_says_why_a_certificate_is_of_no_use(tmp_path, content, why):
    cert, _ = certificate(tmp_path, "one")
    _, key = certificate(tmp_path, "other")
    if content == "locked":
        form, lock = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        made = ec.generate_private_key(ec.SECP256R1())
        content = made.private_bytes(serialization.Encoding.PEM, form, lock)
    if content is not None:
        Path(key).write_bytes(content)

    done = run("check-config", cwd=tmp_path, EYEWALL_TLS__CERT=cert, EYEWALL_TLS__KEY=key)

    assert done.returncode == 2
    assert "tls.cert and tls.key can't be used" in done.stderr
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
