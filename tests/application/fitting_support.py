"""Objects that have all that a port needs, and do nothing."""

from __future__ import annotations

from typing import Any

from eyewall.application.ports import conformance

METHODS = [
    (what, name)
    for what, protocol in conformance.PORTS.items()
    for name in vars(protocol)
    if not name.startswith("_")
]
"""Every method of every port."""


def anything(*args: Any, **kwargs: Any) -> None:
    """Takes whatever it is called with."""


def whole(*ports: str, **more: Any) -> Any:
    """An object that fits the ports, with ``more`` in its class."""
    methods = {name: anything for port, name in METHODS if port in ports}
    return type("Given", (), methods | more)()
