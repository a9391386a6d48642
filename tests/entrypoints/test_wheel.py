"""The wheel holds all that is needed: it is built, installed elsewhere, and run."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from eyewall.version import VERSION
from tests.wheels import LAYERS, ROOT, run

JAVASCRIPT = {"eyewall.js", "eyewall.d.ts"}  # of clients/js: what the hub serves, and its types


def test_its_name_has_the_version_and_every_platform(wheel):
    assert wheel.name == f"eyewall-{VERSION}-py3-none-any.whl"


def test_it_has_every_source_file_and_nothing_else(wheel):
    """A folder that was forgotten in pyproject.toml would be missing."""
    expected = {
        f"eyewall/{path.relative_to(ROOT).as_posix()}".replace("eyewall/entrypoints", "eyewall")
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {path.name for path in ROOT.glob("*.py")}
    expected |= {f"eyewall/javascript/{name}" for name in JAVASCRIPT}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("eyewall-")}

    assert found == expected


def test_it_says_its_licence_and_that_it_is_typed(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    assert "eyewall/py.typed" in names
    assert f"eyewall-{VERSION}.dist-info/licenses/LICENSE" in names


def test_what_is_installed_can_be_imported(installed):
    """It is really the wheel's, not the tree's that the tests run in."""
    script = "import eyewall; print(eyewall.__file__); print(eyewall.Server.__module__)"

    place, module = run(
        sys.executable, "-c", script, cwd=installed, PYTHONPATH=str(installed)
    ).split()

    assert Path(place).parent == installed / "eyewall"
    assert module == "eyewall.server.server"


def test_pytest_finds_the_test_kit(installed, tmp_path):
    """By the entry point, without anybody naming the plug-in."""
    (tmp_path / "test_it.py").write_text(
        "from eyewall import Server\n"
        "async def test_it(test_hub):\n"
        "    async with test_hub(Server()) as th:\n"
        "        await th.connect(user='ada')\n"
    )
    pytest_run = ("-m", "pytest", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto")

    said = run(sys.executable, *pytest_run, cwd=tmp_path, PYTHONPATH=str(installed))

    assert "1 passed" in said


def test_the_chat_s_page_is_there(installed):
    static = installed / "eyewall" / "chat" / "static"

    assert (static / "index.html").is_file()
    assert any(static.glob("*.js"))


def test_the_javascript_client_is_there_and_is_served(installed):
    script = """
import asyncio, urllib.request
from eyewall import Server

async def main():
    server = Server()
    await server.start(port=0)
    url = f"http://127.0.0.1:{server.port}/eyewall.js"
    print((await asyncio.to_thread(urllib.request.urlopen, url)).read().decode())
    await server.shutdown(1)

asyncio.run(main())
"""

    served = run(sys.executable, "-c", script, cwd=installed, PYTHONPATH=str(installed))

    assert served.strip() == (ROOT / "clients" / "js" / "eyewall.js").read_text().strip()


def test_the_command_is_there(installed):
    command = installed / "bin" / "eyewall"

    said = run(command, "version", cwd=installed, PYTHONPATH=str(installed))

    assert said == f"eyewall {VERSION}\n"
