"""What the tests of the pages start with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.certificate import certificate
from tests.entrypoints import wire
from tests.entrypoints.house import House, Pair, cluster, open_house


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A server whose clients come by name."""
    async with open_house() as house:
        yield house


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two servers of one cluster."""
    async with cluster() as pair:
        yield pair


@pytest.fixture(params=["plain", "tls"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the test once with plain connections, once with TLS."""
    if request.param == "tls":
        monkeypatch.setattr(wire, "over_tls", True)
        for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"):  # who trusts by the system's list
            monkeypatch.setenv(name, str(certificate()))
    return str(request.param)
