"""The pytest plug-in of the test kit: the fixture ``test_hub``, and readable failures of contracts.

It is a module outside the package because pytest imports it at each start: importing ``eyewall``
here would cost each run a quarter of a second, also runs that do not use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from eyewall import Server
    from eyewall.testing import TestHub

# The contracts are tests in a package. pytest rewrites their asserts, so that a failure shows its
# values, only if it is told so before they are imported.
pytest.register_assert_rewrite("eyewall.testing.contracts")

_HUBS: pytest.StashKey[list[TestHub]] = pytest.StashKey()
"""The hubs that a test has made."""


@pytest.fixture
def test_hub(request: pytest.FixtureRequest) -> Callable[..., TestHub]:
    """Return a function with the arguments of ``TestHub``: ``async with test_hub(server) as th``.

    The report of a failed test has the messages of its clients and the log.
    """
    from eyewall.testing import TestHub  # noqa: PLC0415  (only when it is used)

    hubs = request.node.stash.setdefault(_HUBS, [])

    def make(server: Server, **options: Any) -> TestHub:
        hub = TestHub(server, **options)
        hubs.append(hub)
        return hub

    return make


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Add the story of each hub to the report of a failed test."""
    if call.when == "call" and call.excinfo is not None:
        for hub in item.stash.get(_HUBS, []):
            item.add_report_section("call", f"eyewall {hub.name}", hub.story())
