"""What a user writes with plain strings, and what comes out of it, for a strict type checker."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import eyewall
from eyewall.client import Client

ROOT = Path(__file__).parents[2]
APPLICATION = Path(__file__).with_name("application.py")
USED = {
    found
    for node in ast.walk(ast.parse(APPLICATION.read_text()))
    for found in (getattr(node, "attr", None), getattr(node, "id", None))
}


def test_an_application_of_plain_strings_passes_a_strict_type_checker():
    """Ids, roles and tags are given as strings and lists of them; what comes out is typed."""
    command = [sys.executable, "-m", "mypy", "--strict", str(APPLICATION)]
    run = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", sorted(eyewall.__all__))
def test_every_public_name_is_in_the_application(name):
    assert name in USED


@pytest.mark.parametrize("kind", [eyewall.Server, eyewall.Hub, Client], ids=repr)
def test_every_public_method_is_in_the_application(kind):
    methods = {
        name
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and inspect.isfunction(value)
    }

    assert not methods - USED
