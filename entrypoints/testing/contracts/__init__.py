"""What the ports promise, as test suites: for who writes an adapter of their own.

A suite is a class with a test for each promise. Take it over, say in its fixture how a client of
your engine is made, and let pytest run it:

>>> from eyewall.testing.contracts import BusContract
>>> class TestMyBus(BusContract):
...     @pytest.fixture
...     def connect(self):
...         return lambda: MyPubSub("my://localhost")

``connect()`` returns a new client that is not open yet; all clients of one test are of one engine,
which holds nothing at the beginning. A client that has ``open`` and ``close`` is opened and closed
by the tests. The tests are ``async`` and need pytest-asyncio with ``asyncio_mode = "auto"``.
Where an engine needs more than that (how its time passes, say) the suite's module says so.

This package needs pytest; ``eyewall.testing`` itself does not.
"""

from eyewall.testing.contracts.bus import BusContract
from eyewall.testing.contracts.history import HistoryContract
from eyewall.testing.contracts.offline import OfflineContract
from eyewall.testing.contracts.state import StateContract

__all__ = ["BusContract", "HistoryContract", "OfflineContract", "StateContract"]
