"""The options of a server, and how each reaches the code that uses it.

``Server`` collects its keywords here by name. A part of the server (the node's configuration, its
ports, the WebSocket gateway) gets those that it has a keyword of the same name for. So an option
is written down where it is given and where it is used, and nowhere in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from types import MappingProxyType
from typing import Any


class Options:
    """The values of ``Server``'s keywords, as attributes; ``Server`` has their meaning.

    Immutable. Raises ``AttributeError`` for a name that is no keyword.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = MappingProxyType(dict(values))

    def __getattr__(self, name: str) -> Any:
        if name not in self.__slots__ and name in self._values:
            return self._values[name]
        raise AttributeError(f"no option is named {name!r}")

    def for_part(self, part: Callable[..., Any]) -> dict[str, Any]:
        """Return the options that ``part``, a class or function, has keywords for."""
        return {name: self._values[name] for name in keywords_of(part) & self._values.keys()}

    def changed(self, changes: Mapping[str, Any]) -> Options:
        """Return the options with ``changes``; raises ``TypeError`` for an unknown name."""
        if unknown := changes.keys() - self._values.keys():
            raise TypeError(f"Server has no option {', '.join(sorted(unknown))}")
        return Options({**self._values, **changes})


@cache
def keywords_of(part: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the keywords that a class or function takes."""
    return frozenset(signature(part).parameters)
