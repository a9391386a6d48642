"""Whether what a user gives for a port fits it: looked at where it is given.

The ports say what is needed; there is no second list of their methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from eyewall.application import ports, stores

_Needs = tuple[tuple[str, int], ...]

PORTS: dict[str, type[Any]] = {
    "authenticator": ports.Authenticator,
    "access_controller": ports.AccessController,
    "validator": ports.Validator,
    "limiter": ports.Limiter,
    "metrics": ports.Metrics,
    "tracer": ports.Tracer,
    "logger": ports.Logger,
    "pubsub": stores.PubSub,
    "state": stores.StateStore,
    "history": stores.HistoryStore,
    "offline": stores.OfflineStore,
}
"""What a server may be given, by its keyword."""

CALLED = frozenset({"authenticator", "validator", "limiter"})
"""Ports for which a plain callable will do."""
OPTIONAL: dict[str, type[Any]] = {"metrics": ports.WatchesNode, "pubsub": stores.CountsListeners}
"""What a port may have too, each method by itself."""


def check(what: str, given: object) -> None:
    """Look at an adapter for the port ``what``; None is fine.

    Raises ``ValueError`` that names the port, and the method that is missing, can't be
    called, or does not take what it will be called with.
    """
    if given is None:
        return
    if isinstance(given, type):
        name = given.__name__
        raise ValueError(
            f"{what} must be an adapter's object, not the class {name}: write {name}(...)"
        )
    needs = _methods(PORTS[what])
    if what in CALLED and callable(given) and not hasattr(given, needs[0][0]):
        _check_call(what, "it", given, needs[0][1])
        return
    for name, taken in needs:
        method = getattr(given, name, None)
        if method is None or getattr(method, "__func__", None) is vars(PORTS[what])[name]:
            # Not there, or inherited from the port itself, where there is only a promise.
            kind = type(given).__name__
            raise ValueError(f"{what} must have the method {name}(), which {kind} has not")
        _check_call(what, f"{name}()", method, taken)
    for name, taken in _methods(OPTIONAL[what]) if what in OPTIONAL else ():
        if (method := getattr(given, name, None)) is not None:
            _check_call(what, f"{name}()", method, taken)


def _check_call(what: str, name: str, method: object, taken: int) -> None:
    if not callable(method):
        raise ValueError(f"{what}: {name} must be callable, not {method!r:.80}")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return  # of C code, say: calling it will tell
    try:
        signature.bind(*[None] * taken)
    except TypeError:
        raise ValueError(
            f"{what}: {name} is called with {taken} arguments, and takes {signature}"
        ) from None


def _methods(port: type[Any]) -> _Needs:
    """Return the methods of a port, and how many arguments each must take."""
    return tuple((name, _taken(method)) for name, method in _declared(port))


def _declared(port: type[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, found in vars(port).items():
        if not name.startswith("_") and inspect.isfunction(found):
            yield name, found


def _taken(method: Callable[..., Any]) -> int:
    parameters = list(inspect.signature(method).parameters.values())[1:]  # without self
    return sum(
        1
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is parameter.empty
    )
