"""Checks that an adapter fits its port, at the moment when it is given to a server.

The methods and their arguments are read from the port itself: there is no second list.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

from eyewall.application.ports import bus, plugins, stores

_Needs = tuple[tuple[str, int, bool], ...]
"""Per method: its name, the number of arguments, and whether it takes any keywords."""


PORTS: dict[str, type[Any]] = {
    "authenticator": plugins.Authenticator,
    "access_controller": plugins.AccessController,
    "validator": plugins.Validator,
    "limiter": plugins.Limiter,
    "metrics": plugins.Metrics,
    "tracer": plugins.Tracer,
    "logger": plugins.Logger,
    "pubsub": bus.PubSub,
    "state": stores.StateStore,
    "history": stores.HistoryStore,
    "offline": stores.OfflineStore,
}
"""The port of each keyword of a server."""


CALLED = frozenset({"authenticator", "validator", "limiter", "tracer"})
"""Ports for which a plain callable is enough."""


PLAIN = frozenset({"logger", "metrics", "tracer"})
"""Ports whose methods are not awaited: the body of a coroutine function would never run."""


OPTIONAL: dict[str, type[Any]] = {"metrics": plugins.WatchesNode, "pubsub": bus.CountsSubscribers}
"""Optional methods of a port; an adapter may have any of them."""


def check(what: str, given: object) -> None:
    """Check the adapter ``given`` for the port ``what``; None passes.

    Raises ``ValueError`` that names the port and the method that is missing, is not callable,
    or does not accept its arguments.
    """
    if given is None:
        return
    if isinstance(given, type):
        name = given.__name__
        raise ValueError(
            f"{what} must be an adapter's object, not the class {name}: write {name}(...)"
        )
    if isinstance(given, logging.Logger | logging.LoggerAdapter):
        kind = type(given).__name__
        raise ValueError(
            f"{what}: a {kind} of logging takes no fields, as in info(event, url=...); "
            "structlog.wrap_logger(...) makes one that does"
        )
    needs = _methods(PORTS[what])
    if what in CALLED and callable(given) and not hasattr(given, needs[0][0]):
        _check_call(what, "it", given, *needs[0][1:])
        return
    for name, taken, more in needs:
        method = getattr(given, name, None)
        if method is None or getattr(method, "__func__", None) is vars(PORTS[what])[name]:
            # Missing, or inherited from the port itself, which has no implementation.
            kind = type(given).__name__
            raise ValueError(f"{what} must have the method {name}(), which {kind} has not")
        _check_call(what, f"{name}()", method, taken, more)
    for name, taken, more in _methods(OPTIONAL[what]) if what in OPTIONAL else ():
        if (method := getattr(given, name, None)) is not None:
            _check_call(what, f"{name}()", method, taken, more)


def _check_call(what: str, name: str, method: object, taken: int, more: bool) -> None:
    if not callable(method):
        raise ValueError(f"{what}: {name} must be callable, not {method!r:.80}")
    if what in PLAIN and is_async(method):
        raise ValueError(f"{what}: {name} must be a plain function, as nobody awaits it")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return  # a function in C, for example: its signature is unknown
    try:
        signature.bind(*[None] * taken, **({"of_any_name": None} if more else {}))
    except TypeError:
        keywords = " and keywords" if more else ""
        raise ValueError(
            f"{what}: {name} is called with {taken} arguments{keywords}, and takes {signature}"
        ) from None


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether a call of ``fn`` returns a coroutine; callable objects are supported."""
    call = getattr(fn, "__call__", None)  # noqa: B004  (its signature is wanted)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)


def _methods(port: type[Any]) -> _Needs:
    """Return the methods of a port, each with the arguments that it must accept."""
    return tuple((name, *_taken(method)) for name, method in _declared(port))


def _declared(port: type[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, found in vars(port).items():
        if not name.startswith("_") and inspect.isfunction(found):
            yield name, found


def _taken(method: Callable[..., Any]) -> tuple[int, bool]:
    parameters = list(inspect.signature(method).parameters.values())[1:]  # without self
    needed = sum(
        1
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is parameter.empty
    )
    return needed, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
