"""The server that one hostile client after the other attacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.support import HubProcess


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """It takes compressed messages, and sends none: these clients inflate nothing."""
    options = {"compression": {"threshold": 1 << 30}}
    with HubProcess(tmp_path_factory.mktemp("hub"), options=options) as hub:
        yield hub
