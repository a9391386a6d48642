"""The promises of the ports as test suites, for authors of adapters.

A suite is a class with one test per promise. Derive a class from it, return a client of your
engine from its fixture, and run pytest:

>>> from eyewall.testing.contracts import BusContract
>>> class TestMyBus(BusContract):
...     @pytest.fixture
...     def connect(self):
...         return lambda: MyPubSub("my://localhost")

``connect()`` returns a new client that is not open yet. All clients of one test use one engine,
which is empty at the beginning. The tests open and close a client that has ``open`` and ``close``.
They are ``async`` and need pytest-asyncio with ``asyncio_mode = "auto"``. The module of a suite
describes further fixtures, such as one that lets time pass.

This package needs pytest; ``eyewall.testing`` itself does not.
"""

from eyewall.testing.contracts.bus import BusContract
from eyewall.testing.contracts.codec import CodecContract
from eyewall.testing.contracts.history import HistoryContract
from eyewall.testing.contracts.offline import OfflineContract
from eyewall.testing.contracts.state import StateContract

__all__ = ["BusContract", "CodecContract", "HistoryContract", "OfflineContract", "StateContract"]
