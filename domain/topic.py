"""The pattern of a route: one exact topic, or all topics with a prefix.

Rules of this file:

1. A ``*`` stands only at the end, alone or after a ``:``. So finding a route is a look-up and
   not a search.
2. ``*`` alone matches every topic of the application, and none of the server's own
   (``system:``): a catch-all never answers for the server.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field

from eyewall.domain.envelope import MAX_TOPIC, SYSTEM

SEPARATOR = ":"
"""Separates the segments of a topic."""

ANY = "*"
"""The wildcard."""


def is_system(topic: str) -> bool:
    """Return whether ``topic`` belongs to the server."""
    return topic.startswith(SYSTEM)


@dataclass(frozen=True, slots=True)
class Pattern:
    """An exact topic (``chat:general``) or a wildcard (``chat:*``, ``*``).

    Raises ``ValueError`` if ``text`` is not 1 to 256 characters, has a ``*`` that is
    not the whole last segment, or begins with ``system:`` without ``allow_system``.

    >>> Pattern("chat:*").matches("chat:room:general")
    True
    """

    text: str
    allow_system: InitVar[bool] = field(default=False, kw_only=True)

    def __post_init__(self, allow_system: bool) -> None:
        text = self.text
        if not isinstance(text, str) or not 0 < len(text) <= MAX_TOPIC:
            raise ValueError(f"a pattern must be 1 to {MAX_TOPIC} characters, not {text!r:.80}")
        before_last = text.removesuffix(ANY)
        if ANY in before_last or (
            before_last != text and before_last and not before_last.endswith(SEPARATOR)
        ):
            raise ValueError(f"a * must be the whole last segment, as in 'chat:*', not {text!r}")
        if is_system(text) and not allow_system:
            raise ValueError(f"topics that begin with {SYSTEM!r} belong to the server: {text!r}")

    @property
    def is_wildcard(self) -> bool:
        """Whether it matches more than one topic."""
        return self.text.endswith(ANY)

    @property
    def prefix(self) -> str:
        """The prefix of a wildcard's topics (``chat:``; empty for ``*``); the topic itself for
        an exact pattern."""
        return self.text.removesuffix(ANY)

    def matches(self, topic: str) -> bool:
        """Return whether the pattern matches ``topic``."""
        if not self.is_wildcard:
            return topic == self.text
        if not self.prefix:
            return not is_system(topic)
        return topic.startswith(self.prefix)

    def __str__(self) -> str:
        return self.text
