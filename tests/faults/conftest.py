"""What the tests that break things start with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import support
from tests.faults.support import HubProcess


@pytest.fixture(scope="module", params=["plain", "tls"])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have the tests of a module once with plain connections, once with TLS."""
    support.over_tls = request.param == "tls"
    yield request.param
    support.over_tls = False


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """The server that one hostile client after the other attacks.

    It takes compressed messages, and sends none: these clients inflate nothing.
    """
    options = {"compression": {"threshold": 1 << 30}}
    with HubProcess(tmp_path_factory.mktemp("hub"), options=options) as hub:
        yield hub
