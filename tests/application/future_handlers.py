"""Handlers whose annotations are texts, as most modules have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import eyewall.domain.envelope
from eyewall.domain.envelope import Envelope
from eyewall.domain.envelope import Envelope as Letter

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers

    from nowhere import Nowhere


@dataclass
class Point:
    x: int
    y: int = 0


def shown(msg: Any) -> Any:
    return [type(msg.data).__name__, msg.data.x]


async def by_dataclass(ctx: Any, msg: Envelope[Point]) -> Any:
    return shown(msg)


async def by_module(ctx: Any, msg: eyewall.domain.envelope.Envelope[Point]) -> Any:
    return shown(msg)


async def by_alias(ctx: Any, msg: Letter[Point]) -> Any:
    return shown(msg)


class Says:
    async def method(self, ctx: Any, msg: Envelope[Point]) -> Any:
        return shown(msg)

    async def __call__(self, ctx: Any, msg: Envelope[Point]) -> Any:
        return shown(msg)


async def with_names_for_type_checkers(
    ctx: OnlyForCheckers, msg: Envelope[Point]
) -> list[OnlyForCheckers]:
    return []


async def of_a_type_that_is_not_there(ctx: Any, msg: Envelope[Nowhere]) -> None: ...


async def untyped(ctx: dict[OnlyForCheckers, Any], msg: Envelope) -> None: ...


def of_local(Local: type) -> Any:  # noqa: N803  (a class)
    async def handler(ctx: Any, msg: Envelope[Local]) -> Any:
        return type(msg.data).__name__

    return handler
