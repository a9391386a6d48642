"""The Python client of a hub: it sends, receives, and reconnects after a cut.

>>> from eyewall.client import Client
>>> async with Client("ws://127.0.0.1:8080/ws") as client:
...     await client.join("lobby")
...     await client.publish("lobby", {"text": "hello"})

It needs the extra ``eyewall[client]``.
"""

from eyewall.application.ports.extras import needs

try:
    import websockets  # noqa: F401  (imported here for a clear error)
except ImportError as error:
    raise ImportError(needs("eyewall.client", "client"), name="websockets") from error

from eyewall.client.client import Client
from eyewall.client.receiver import Counts
from eyewall.client.supervisor import State

__all__ = ["Client", "Counts", "State"]
