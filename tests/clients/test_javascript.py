"""The JavaScript client by itself: its own tests, its types, and what npm would publish."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eyewall.version import VERSION
from tests.libraries.servers import need
from tests.libraries.test_close import NODE_MODULES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clients" / "js"
SOURCE = FOLDER / "eyewall.js"
TYPES = FOLDER / "eyewall.d.ts"

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100 * UNIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def node() -> str:
    found = shutil.which("node")
    assert found, "the tests need Node 20 or newer"
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("test/*.test.js")), ids=lambda path: path.stem)
def test_its_own_tests_pass(path):
    run(node(), "--test", path)


def test_it_needs_nobody_else():
    """One module: it can be copied anywhere, and has nothing to load."""
    text = SOURCE.read_text()

    imports = re.findall(r"^\s*(?:import|export)\b.*\bfrom\b.*|\bimport\(.*", text, re.MULTILINE)
    assert not imports
    assert "require(" not in text


def test_every_block_of_the_docs_can_be_read(tmp_path):
    pages = [ROOT / "docs" / "javascript.md", FOLDER / "README.md"]
    blocks = [b for p in pages for b in re.findall(r"```js\n(.*?)```", p.read_text(), re.DOTALL)]
    assert len(blocks) > 2
    for number, block in enumerate(blocks):
        script = tmp_path / f"{number}.mjs"
        script.write_text(block)
        run(node(), "--check", script)


def test_every_name_that_it_exports_is_declared_and_no_other():
    exports = r"^export (?:async )?(?:class|function|const) (\w+)"
    values = r"^export (?:declare )?(?:class|function|const) (\w+)"

    there = re.findall(exports, SOURCE.read_text(), re.MULTILINE)
    declared = re.findall(values, TYPES.read_text(), re.MULTILINE)

    assert sorted(there) == sorted(declared)
    assert {"connect", "Client", "EyewallError"} <= set(there)


def members(text: str, name: str) -> set[str]:
    """The public names of a class: two spaces before them, and no ``#``."""
    (body,) = re.findall(rf"^export class {name}\b.*?^}}", text, re.MULTILINE | re.DOTALL)
    member = r"^  (?:readonly |async |get )*(\w+)\??(?:<.*>)?(?= ?[(:=;])"
    return set(re.findall(member, body, re.MULTILINE))


@pytest.mark.parametrize("name", ["Client", "Outbox", "Positions", "Recent", "Replay"])
def test_every_member_is_declared_and_no_other(name):
    there, declared = members(SOURCE.read_text(), name), members(TYPES.read_text(), name)

    assert there == declared
    assert len(there) > 2


def test_the_client_has_the_abilities_of_the_python_one():
    abilities = "on send request join leave publish members presence typing history state onState"

    assert set(abilities.split()) <= members(TYPES.read_text(), "Client")


def test_the_types_hold_for_a_program(tmp_path):
    tsc = NODE_MODULES / ".bin" / "tsc"
    need(tsc.exists(), "npm")
    program = tmp_path / "program.ts"
    example = (FOLDER / "test" / "program.ts").read_text()
    program.write_text(example.replace("../eyewall.js", str(SOURCE)))

    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "es2022"]
    run(tsc, *options, "--moduleResolution", "bundler", program)


def test_its_package_is_what_npm_would_publish():
    package = json.loads((FOLDER / "package.json").read_text())

    assert (package["name"], package["version"]) == ("eyewall", VERSION)
    assert (package["type"], package["license"]) == ("module", "MIT")
    assert all((FOLDER / name).is_file() for name in package["files"])
    assert {package["main"], package["types"]} == {f"./{name}" for name in package["files"]}
    assert not {"dependencies", "devDependencies", "peerDependencies"} & package.keys()
    assert (FOLDER / "README.md").is_file()


def test_its_licence_is_the_project_s():
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
