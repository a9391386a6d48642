"""The documentation runs: its Python, its JSON, its settings, its links."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets

from eyewall.settings.settings import Settings
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "clients").rglob("*.md")),
]
RUNS = "server.run(port=8080)"


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
        for number, block in enumerate(found, 1):
            yield f"{page.relative_to(ROOT)}-{number}", block


def each(language: str) -> pytest.MarkDecorator:
    found = dict(blocks(language))
    return pytest.mark.parametrize("block", found.values(), ids=found.keys())


@each("python")
def test_every_python_block_runs_by_itself(block):
    names = {"__name__": "docs"}
    sys.modules.setdefault("docs", type(sys)("docs"))

    exec(compile(block.replace(RUNS, ""), "docs", "exec"), names)

    assert names.keys() > {"__name__"}


@pytest.fixture(scope="module")
def untyped(tmp_path_factory) -> dict[str, list[str]]:
    """What strict mypy says of each Python block, after the lines of its page."""
    folder = tmp_path_factory.mktemp("blocks")
    at = {}
    for page in PAGES:
        text = page.read_text()
        for number, found in enumerate(re.finditer(r"```python\n(.*?)```", text, re.DOTALL), 1):
            name = f"{page.relative_to(ROOT)}-{number}"
            file = folder / f"{re.sub(r'[^a-zA-Z0-9]', '_', name)}.py"
            # So far down that mypy counts the lines as the page does.
            file.write_text("\n" * text.count("\n", 0, found.start(1)) + found[1])
            at[file.name] = name
    command = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", *at]
    command += ["--config-file", str(ROOT / "pyproject.toml")]
    # What `make types` has found out about the package need not be found out again.
    command += ["--cache-dir", str(ROOT / ".mypy_cache")]
    run = subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, timeout=300
    )
    errors: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        file_name, _, rest = line.partition(":")
        if file_name in at and " error: " in rest:
            errors.setdefault(at[file_name], []).append(f"line {rest}")
    assert run.returncode == (1 if errors else 0), run.stdout + run.stderr
    return errors


@pytest.mark.parametrize("block", dict(blocks("python")))
def test_every_python_block_passes_a_strict_type_checker(block, untyped):
    """What the documentation shows can be copied into a program that is held to mypy."""
    assert not untyped.get(block, []), block


@each("json")
def test_every_json_block_is_a_message_to_a_line(block):
    for line in block.splitlines():
        assert json.loads(line)["topic"]


@each("toml")
def test_every_toml_block_is_accepted_as_settings(block, tmp_path):
    (tmp_path / "eyewall.toml").write_text(block.replace("keys/login.pem", str(tmp_path / "k")))
    (tmp_path / "k").write_text("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n")

    assert Settings.load(tmp_path / "eyewall.toml", environ={})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_to_headings_lead_to_one(page):
    for target, title in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
        if "://" not in target:
            text = (page.parent / target if target else page).read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert title in set(map(anchor, headings)), f"{target}#{title}"


async def test_the_first_example_of_the_readme_runs_as_printed(tmp_path):
    """Ten lines, saved and run, answer the message that the next lines send."""
    port = free_port()
    block = dict(blocks("python"))["README.md-1"]
    assert len([line for line in block.splitlines() if line]) <= 10
    assert RUNS in block
    script = tmp_path / "first.py"
    script.write_text(block.replace("8080", str(port)))
    (sent,) = re.findall(r"ws\.send\('(.*)'\)", (ROOT / "README.md").read_text())

    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, env={**os.environ}, text=True
    )
    try:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        async with websockets.connect(f"ws://127.0.0.1:{port}/ws") as client:
            await client.send(sent)
            answer = json.loads(await client.recv())
        assert answer["topic"] == "echo:pong"
        assert answer["data"] == {"echo": "hello"}
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


SOURCES = [
    path
    for folder in ("domain", "application", "adapters", "entrypoints", "clients/js", "tests")
    for kind in ("*.py", "*.js", "*.mjs", "*.ts")
    for path in sorted((ROOT / folder).rglob(kind))
    if "node_modules" not in path.parts
]
POINTER = re.compile(r'(?<![\w./-])([a-z-]+\.md)(?:,[\s#*]+"([^"]+)")?')
"""A page, perhaps with one of its headings: ``protocol.md, "Replies"``."""


def pointers() -> Iterator[tuple[str, str, str]]:
    """What comments, docstrings and texts of the source point at."""
    for path in SOURCES:
        text = path.read_text()
        for found in POINTER.finditer(text):
            at = f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}"
            yield at, found[1], " ".join((found[2] or "").split())


def test_what_the_source_says_of_a_page_is_there():
    headings: dict[str, set[str]] = {}
    for page in PAGES:
        found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        headings.setdefault(page.name, set()).update(found)
    said = list(pointers())

    assert len(said) > 60
    assert [at for at, page, _ in said if page not in headings] == []
    assert [at for at, page, title in said if title and title not in headings[page]] == []
