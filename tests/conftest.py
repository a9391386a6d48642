"""What tests of several folders share: the wheel is built once for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import wheels


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.build(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content: on ``PYTHONPATH`` it goes before the tree."""
    folder = tmp_path_factory.mktemp("installed")
    wheels.install(wheel, folder)
    return folder
