"""Checks of what an application gives to the hub, made before anything waits."""

from __future__ import annotations

from collections.abc import Iterable

from eyewall.domain.identity import UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.report import AckOptions


def several(user_ids: Iterable[UserId | str]) -> list[UserId | str]:
    """Notice one id in the place of several: a string would be read letter by letter."""
    if isinstance(user_ids, str):
        raise ValueError(f"user_ids must be several ids, not one: {user_ids!r:.80}")
    return [check_user(user_id) for user_id in user_ids]


def check_user(user_id: UserId | str) -> UserId:
    """Notice what can't be a user, such as an anonymous connection's None, before anything
    is kept for it."""
    return UserId(check_name(user_id, "user_id"))


def check_options(given: object, kind: type, what: str) -> None:
    """Notice the wrong kind of options here, not where a part of them is first needed."""
    if given is not None and not isinstance(given, kind):
        article = "an" if kind is AckOptions else "a"
        raise ValueError(f"{what} must be {article} {kind.__name__}, not {given!r:.80}")
