"""pytest's way to the test kit: the fixture ``test_hub``, and contracts that say what failed.

It stands outside of the package because pytest imports it at every start: importing
``eyewall`` here would cost each run a quarter of a second, also those that never use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from eyewall import Server
    from eyewall.testing import TestHub

# The contracts are tests though they stand in a package: pytest has to know before they are
# imported, or a failed ``assert`` in one says nothing of its values.
pytest.register_assert_rewrite("eyewall.testing.contracts")

_HUBS: pytest.StashKey[list[TestHub]] = pytest.StashKey()
"""What a test has made."""


@pytest.fixture
def test_hub(request: pytest.FixtureRequest) -> Callable[..., TestHub]:
    """Make a ``TestHub``, with its arguments: ``async with test_hub(server) as th``.

    When the test fails, the report says what its clients got and what was logged.
    """
    from eyewall.testing import TestHub  # noqa: PLC0415  (only for who uses it)

    hubs = request.node.stash.setdefault(_HUBS, [])

    def make(server: Server, **options: Any) -> TestHub:
        hub = TestHub(server, **options)
        hubs.append(hub)
        return hub

    return make


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Add what happened to the report of a test that failed."""
    if call.when == "call" and call.excinfo is not None:
        for hub in item.stash.get(_HUBS, []):
            item.add_report_section("call", f"eyewall {hub.name}", hub.story())
