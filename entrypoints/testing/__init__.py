"""The test kit: handlers and rules run in milliseconds, without sockets and real time.

>>> from eyewall.testing import TestHub
>>> async with TestHub(server) as th:
...     alice = await th.connect(user="alice")
...     await alice.send("echo:ping", {"text": "hello"})
...     assert (await alice.receive()).data == {"echo": "hello"}
"""

from eyewall.testing.client import Closed, TestClient
from eyewall.testing.clock import FakeClock
from eyewall.testing.hub import TestHub
from eyewall.testing.logs import RecordingLogger

__all__ = ["Closed", "FakeClock", "RecordingLogger", "TestClient", "TestHub"]
