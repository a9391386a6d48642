"""The route table: finds the handler of a message by its topic and version.

Rules of this file:

1. An exact topic beats any wildcard; among wildcards the longest prefix wins.
2. A message with a version goes to the handler of that version, else to the
   unversioned one of the same pattern, else on to the next pattern. A message
   without a version goes only to unversioned handlers.
3. A look-up is on the hot path: one dictionary access for an exact topic, and one more per
   segment otherwise, independent of the number of routes.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from eyewall.domain.topic import SEPARATOR, Pattern, is_system

H = TypeVar("H")


class RouteTable(Generic[H]):
    """Finds the handler for a topic. A handler may be anything but None.

    >>> table: RouteTable[str] = RouteTable()
    >>> table.add("chat:*", "any")
    >>> table.add("chat:lobby", "lobby")
    >>> table.find("chat:lobby", None), table.find("chat:a:b", None)
    ('lobby', 'any')
    """

    __slots__ = ("_exact", "_longest", "_patterns", "_under")

    def __init__(self) -> None:
        self._exact: dict[str, dict[str | None, H]] = {}
        self._under: dict[str, dict[str | None, H]] = {}  # by prefix, "" for *
        self._patterns: dict[str, None] = {}
        self._longest = 0

    def add(
        self, pattern: str, handler: H, version: str | None = None, *, system: bool = False
    ) -> None:
        """Register ``handler`` for the topics of ``pattern``.

        ``system`` allows topics that belong to the server. Raises ``ValueError`` for a
        bad pattern (see ``Pattern``), or if the pattern has a handler for this version.
        """
        wanted = Pattern(pattern, allow_system=system)
        table = self._under if wanted.is_wildcard else self._exact
        handlers = table.get(wanted.prefix, {})
        if version in handlers:
            of_version = "" if version is None else f" for version {version!r}"
            raise ValueError(f"{pattern!r} has a handler{of_version} already")
        handlers[version] = handler
        table[wanted.prefix] = handlers
        self._patterns[pattern] = None
        if wanted.is_wildcard:
            self._longest = max(self._longest, len(wanted.prefix))

    def find(self, topic: str, version: str | None) -> H | None:
        """Return the handler for a message of ``topic`` and ``version``, or None."""
        handlers = self._exact.get(topic)
        if handlers is not None:
            handler = _choose(handlers, version)
            if handler is not None:
                return handler
        return self._find_under(topic, version)

    def patterns(self) -> list[str]:
        """Return the patterns that have a handler, in the order of registration."""
        return list(self._patterns)

    def _find_under(self, topic: str, version: str | None) -> H | None:
        # The search starts at the longest registered prefix: a topic of 256 colons, which any
        # client may send, costs no more than the depth of the application's own patterns.
        end = topic.rfind(SEPARATOR, 0, self._longest)
        while end >= 0:
            handlers = self._under.get(topic[: end + 1])
            if handlers is not None:
                handler = _choose(handlers, version)
                if handler is not None:
                    return handler
            end = topic.rfind(SEPARATOR, 0, end)
        handlers = self._under.get("")
        if handlers is None or is_system(topic):
            return None
        return _choose(handlers, version)


def _choose(handlers: dict[str | None, H], version: str | None) -> H | None:
    handler = handlers.get(version)
    if handler is None and version is not None:
        return handlers.get(None)
    return handler
