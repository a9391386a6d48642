"""The plug-in for pytest, in pytests of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing-your-app.md"


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where the package and the plug-in can be found."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_tests(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    plugins = ("-p", "eyewall_pytest", "-p", "no:cacheprovider")
    loops = ("-o", "asyncio_default_fixture_loop_scope=function", "-W", "error")
    return python("-m", "pytest", *plugins, *loops, *options, cwd=folder)


def test_it_does_not_import_the_package(tmp_path):
    """Every run of pytest begins with it."""
    done = python("-c", "import sys, eyewall_pytest; print('eyewall' in sys.modules)", cwd=tmp_path)

    assert done.stdout == "False\n", done.stderr


def test_the_page_s_tests_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    tests = sum(block.count("async def test_") for block in blocks)

    done = run_tests(tmp_path, "-o", "asyncio_mode=auto")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout


def test_the_report_of_a_failed_test_says_what_happened(tmp_path):
    (tmp_path / "test_it.py").write_text(
        """
import pytest
from eyewall import Server

server = Server()

@server.on("echo")
async def echo(ctx, msg):
    await ctx.send("echoed", data=msg.data)
    raise ZeroDivisionError

@pytest.mark.asyncio
async def test_it(test_hub):
    async with test_hub(server) as th:
        alice = await th.connect(user="alice")
        await alice.send("echo", "unheard-of")
        assert False
"""
    )

    done = run_tests(tmp_path)

    assert done.returncode == 1
    assert "eyewall test-1" in done.stdout
    assert "alice did not take" in done.stdout
    assert "echoed message 'unheard-of'" in done.stdout
    assert "error handler_failed" in done.stdout
