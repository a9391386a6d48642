"""The wheel, built from the tree and installed apart from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("domain", "application", "adapters", "entrypoints")
BUILD_NEEDS = 77  # setuptools, as in pyproject.toml


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a program to its end, which has to be a good one; return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path) -> None:
    """Build from a copy: a build folder left by an earlier one would go into it."""
    for layer in (*LAYERS, "clients"):
        shutil.copytree(
            ROOT / layer, source / layer, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), ROOT / "LICENSE"):
        shutil.copy(path, source)
    # Without isolation nothing is fetched; it takes a setuptools that is new enough.
    here = int(version("setuptools").partition(".")[0]) >= BUILD_NEEDS
    isolation = ["--no-isolation"] if here else []
    run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", "out", cwd=source)


def built(source: Path) -> Path:
    """Return the wheel that was built in a folder."""
    return next((source / "out").glob("*.whl"))


def install(wheel: Path, folder: Path) -> None:
    """Put nothing but the wheel's content into a folder; what it needs comes from here."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    run(*pip, "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
