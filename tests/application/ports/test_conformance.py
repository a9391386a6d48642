"""What is given for a port is looked at where it is given."""

from __future__ import annotations

import logging

import pytest
import structlog

from eyewall import (
    AccessController,
    Authenticator,
    HistoryStore,
    Limiter,
    Logger,
    MemoryPubSub,
    MemoryState,
    Metrics,
    OfflineStore,
    PubSub,
    StateStore,
    TokenBucketLimiter,
    Tracer,
    Validator,
)
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.application.dispatch.middleware import rate_limit
from eyewall.application.ports import conformance
from eyewall.testing.logs import RecordingLogger
from tests.application.fitting_support import METHODS, anything, whole

PROTOCOLS = {
    "access_controller": AccessController,
    "authenticator": Authenticator,
    "history": HistoryStore,
    "limiter": Limiter,
    "logger": Logger,
    "metrics": Metrics,
    "offline": OfflineStore,
    "pubsub": PubSub,
    "state": StateStore,
    "tracer": Tracer,
    "validator": Validator,
}
GIVEN = {
    "history": MemoryHistory,
    "limiter": lambda: TokenBucketLimiter(1, 1),
    "logger": RecordingLogger,
    "offline": MemoryOffline,
    "pubsub": MemoryPubSub,
    "state": MemoryState,
}
MANY = {"metrics": 10, "state": 14, "history": 4, "offline": 6, "logger": 4, "pubsub": 2}


def test_every_port_that_a_server_takes_is_known():
    assert set(conformance.PORTS) == set(PROTOCOLS)
    for what, methods in MANY.items():
        assert len([name for port, name in METHODS if port == what]) == methods


@pytest.mark.parametrize("what", PROTOCOLS)
def test_what_has_all_methods_fits_and_so_does_nothing(what):
    conformance.check(what, whole(what))
    conformance.check(what, None)


@pytest.mark.parametrize("what", GIVEN)
def test_our_own_adapters_fit(what):
    conformance.check(what, GIVEN[what]())


@pytest.mark.parametrize(("what", "name"), METHODS)
def test_a_method_that_is_missing_is_named_with_the_port(what, name):
    """Also where the port itself is a base class: it promises, and does nothing."""
    given = whole(what)
    for wrong in (None, 42):
        setattr(given, name, wrong)
        with pytest.raises(ValueError, match=rf"{what}.* {name}\(\)"):
            conformance.check(what, given)

    inherits = type("Given", (PROTOCOLS[what],), dict.fromkeys(vars(type(given)), anything))
    delattr(inherits, name)
    with pytest.raises(ValueError, match=rf"{what} must have the method {name}\(\)"):
        conformance.check(what, inherits())


@pytest.mark.parametrize(("what", "name"), METHODS)
def test_a_method_that_takes_something_else_is_named_with_the_port(what, name):
    given = whole(what)
    setattr(given, name, lambda a, b, c, d, e, f, g: None)
    with pytest.raises(ValueError, match=rf"{what}: {name}\(\) is called with"):
        conformance.check(what, given)


@pytest.mark.parametrize("what", PROTOCOLS)
def test_a_class_is_no_object(what):
    with pytest.raises(ValueError, match=rf"{what} must be .* not the class Given: write Given"):
        conformance.check(what, type(whole(what)))


@pytest.mark.parametrize("what", PROTOCOLS)
def test_a_plain_callable_will_do_where_a_port_has_one_method_that_is_called(what):
    if what in conformance.CALLED:
        conformance.check(what, anything)
        with pytest.raises(ValueError, match=f"{what}: it is called with"):
            conformance.check(what, lambda: None)
    else:
        with pytest.raises(ValueError, match=f"{what} must have the method"):
            conformance.check(what, anything)


def test_what_is_optional_may_be_missing_and_may_not_be_wrong():
    metrics = whole("metrics")
    metrics.loop_lag = lambda seconds: None
    conformance.check("metrics", metrics)
    metrics.loop_lag = 3
    with pytest.raises(ValueError, match=r"metrics: loop_lag\(\) must be callable"):
        conformance.check("metrics", metrics)


def test_methods_that_an_object_finds_when_it_is_asked_count():
    """As structlog's loggers have them."""

    class Lazy:
        def __getattr__(self, name):
            return anything

    conformance.check("logger", Lazy())


@pytest.mark.parametrize("name", ["debug", "info", "warning", "error"])
def test_a_logger_takes_fields_of_any_name(name):
    """Without them each line would be lost, one by one, behind the guard of the logs."""
    given = whole("logger")
    setattr(given, name, lambda event, url=None: None)
    with pytest.raises(ValueError, match=rf"logger: {name}\(\) is called with 1 arguments and key"):
        conformance.check("logger", given)


@pytest.mark.parametrize("given", [logging.getLogger("x"), logging.LoggerAdapter(logging.root)])
def test_a_logger_of_logging_takes_no_fields_whatever_it_looks_like(given):
    with pytest.raises(ValueError, match=r"logger: .*structlog\.wrap_logger"):
        conformance.check("logger", given)

    conformance.check("logger", structlog.wrap_logger(given))


@pytest.mark.parametrize(
    ("what", "name"), [each for each in METHODS if each[0] in {"logger", "metrics", "tracer"}]
)
def test_what_nobody_awaits_is_no_coroutine_function(what, name):
    async def method(*args: object, **kwargs: object) -> None:
        """Would never run."""

    given = whole(what)
    setattr(given, name, method)
    with pytest.raises(ValueError, match=rf"{what}: {name}\(\) must be a plain function"):
        conformance.check(what, given)


def test_the_key_of_a_rate_limit_can_not_be_async():
    async def key(ctx):
        raise AssertionError

    with pytest.raises(ValueError, match="can't be async"):
        rate_limit(TokenBucketLimiter(1, 1), key)
