"""Checks of the hub's arguments, made before anything is awaited."""

from __future__ import annotations

from collections.abc import Iterable

from eyewall.domain.identity import UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.report import AckOptions


def several(user_ids: Iterable[UserId | str]) -> list[UserId | str]:
    """Return the ids as a list; raises ``ValueError`` for a single string, which would be read
    letter by letter, and for an id that no user can have."""
    if isinstance(user_ids, str):
        raise ValueError(f"user_ids must be several ids, not one: {user_ids!r:.80}")
    return [check_user(user_id) for user_id in user_ids]


def check_user(user_id: UserId | str) -> UserId:
    """Return the id; raises ``ValueError`` for one that no user can have, such as the None of
    an anonymous connection."""
    return UserId(check_name(user_id, "user_id"))


def check_options(given: object, kind: type, what: str) -> None:
    """Raise ``ValueError`` unless ``given`` is None or a ``kind``; ``what`` names the argument."""
    if given is not None and not isinstance(given, kind):
        article = "an" if kind is AckOptions else "a"
        raise ValueError(f"{what} must be {article} {kind.__name__}, not {given!r:.80}")
