import pytest

from eyewall.application.dispatch.router import Registration, Routes
from tests.application.fakes import settle


def handler(ctx, msg):
    """Does nothing."""


def says(log, name):
    async def handler(ctx, msg):
        log.append(name)

    return handler


def passes(log, name):
    async def middleware(ctx, msg, next):
        log.append(name)
        return await next(ctx, msg)

    return middleware


@pytest.fixture
async def ada(node):
    return await node.connect("ada")


@pytest.fixture
def log():
    return []


# --- which handler


async def test_an_exact_topic_beats_any_wildcard_and_the_longest_prefix_wins(node, ada, log):
    for pattern in ("*", "chat:*", "chat:room:*", "chat:room:lobby"):
        node.hub.handle(pattern, says(log, pattern))

    for topic in ("chat:room:lobby", "chat:room:a", "chat:a", "other"):
        await ada.ask({"topic": topic})

    assert log == ["chat:room:lobby", "chat:room:*", "chat:*", "*"]


async def test_a_version_goes_to_its_handler_else_the_unversioned_else_the_next_pattern(
    node, ada, log
):
    node.hub.handle("a:b", says(log, "a:b v1"), version="v1")
    node.hub.handle("a:*", says(log, "a:* v2"), version="v2")
    node.hub.handle("a:*", says(log, "a:*"))

    for version in ({"version": "v1"}, {"version": "v2"}, {"version": "v3"}, {}):
        await ada.ask({"topic": "a:b", **version})

    assert log == ["a:b v1", "a:* v2", "a:*", "a:*"]


async def test_no_application_route_ever_sees_a_system_topic(make_node, log):
    node = await make_node(client_commands=False)
    node.hub.handle("*", says(log, "*"))
    ada = await node.connect("ada")

    [error] = await ada.ask({"topic": "system:join", "data": {"room": "r"}})

    assert error["data"]["code"] == "handler_not_found"
    assert log == []


@pytest.mark.parametrize("pattern", ["", "a*", "a:*:b", "system:mine", "x" * 257])
async def test_a_bad_pattern_is_refused_where_it_is_registered(node, pattern):
    with pytest.raises(ValueError, match=r"pattern|\*|system"):
        node.hub.handle(pattern, handler)


async def test_one_pattern_has_one_handler_for_each_version(node):
    node.hub.handle("t", handler)
    node.hub.handle("t", handler, version="v1")

    with pytest.raises(ValueError, match="already"):
        node.hub.handle("t", handler)


async def test_an_ordering_key_that_would_have_to_wait_is_refused(node):
    """It is asked before anything waits; its coroutine would be a lane for each message."""

    async def key(ctx, msg):
        return "k"

    with pytest.raises(ValueError, match="ordering_key"):
        node.hub.handle("t", handler, ordering_key=key)


async def test_routes_may_be_added_while_it_runs(node, ada, log):
    [error] = await ada.ask({"topic": "late"})
    assert error["data"]["code"] == "handler_not_found"

    node.hub.handle("late", says(log, "late"))
    await ada.ask({"topic": "late"})
    assert log == ["late"]


# --- which middleware


async def test_global_middleware_runs_outermost_in_the_order_in_which_it_was_added(node, ada, log):
    node.hub.use(passes(log, "first"), passes(log, "second"))
    node.hub.handle("t", says(log, "handler"), passes(log, "own 1"), passes(log, "own 2"))
    node.hub.use(passes(log, "third"))

    await ada.ask({"topic": "t"})

    assert log == ["first", "second", "third", "own 1", "own 2", "handler"]


async def test_middleware_added_while_it_runs_applies_from_the_next_message_on(node, ada, log):
    node.hub.handle("t", says(log, "handler"))
    await ada.ask({"topic": "t"})
    node.hub.use(passes(log, "late"))
    await ada.ask({"topic": "t"})

    assert log == ["handler", "late", "handler"]


async def test_the_chain_is_built_once_for_many_messages(node, ada):
    node.hub.handle("t", handler)
    router = node.parts.router
    route = router.find("t", None)

    before = route.bound(router.everywhere)
    assert route.bound(router.everywhere) is before
    node.hub.use(passes([], "new"))
    after = route.bound(router.everywhere)
    assert after is not before
    assert route.bound(router.everywhere) is after


async def test_the_server_s_own_commands_go_through_global_middleware_too(node, ada, log):
    node.hub.use(passes(log, "seen"))

    await ada.ask({"topic": "system:join", "data": {"room": "r"}})

    assert log == ["seen"]


# --- groups


async def test_a_group_is_taken_in_with_a_prefix(node, ada, log):
    routes = Routes()
    routes.on("say")(says(log, "say"))
    routes.handle("*", says(log, "*"))
    node.parts.router.include(routes, "chat:")

    await ada.ask({"topic": "chat:say"})
    await ada.ask({"topic": "chat:x"})
    [error] = await ada.ask({"topic": "say"})

    assert log == ["say", "*"]
    assert error["data"]["code"] == "handler_not_found"


async def test_a_group_s_middleware_is_its_own_between_global_and_route(node, ada, log):
    routes = Routes()
    routes.handle("t", says(log, "handler"), passes(log, "own"))
    node.parts.router.include(routes, "")
    node.hub.handle("other", says(log, "other"))
    node.hub.use(passes(log, "global"))
    routes.use(passes(log, "group"))

    await ada.ask({"topic": "t"})
    await ada.ask({"topic": "other"})

    assert log == ["global", "group", "own", "handler", "global", "other"]


async def test_what_a_group_gets_after_it_was_taken_in_is_there_too(node, ada, log):
    routes = Routes()
    node.parts.router.include(routes, "")

    routes.handle("late", says(log, "late"), version="v1", ordering_key=lambda ctx, msg: 1)
    await ada.ask({"topic": "late", "version": "v1"})

    assert log == ["late"]


async def test_a_group_may_be_taken_in_twice(node, ada, log):
    routes = Routes()
    routes.handle("t", says(log, "t"))
    node.parts.router.include(routes, "a:")
    node.parts.router.include(routes, "b:")

    await ada.ask({"topic": "a:t"})
    await ada.ask({"topic": "b:t"})
    await settle()

    assert log == ["t", "t"]


def test_a_bad_pattern_in_a_group_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="\\*"):
        Routes().handle("a*", handler)


def test_deciding_on_a_handler_returns_it():
    assert Routes().on("t")(handler) is handler
    assert Registration("t", handler, (), None, None).handler is handler


async def generating(ctx, msg):
    yield


@pytest.mark.parametrize(
    "handler", [5, "text", int, generating, lambda: None, lambda ctx: None, lambda a, b, c: None]
)
def test_what_is_no_function_of_context_and_message_is_refused_at_once(handler):
    """A mistake is found where it is made, not when the first message comes."""
    with pytest.raises(TypeError):
        Routes().handle("t", handler)


@pytest.mark.parametrize("wrong", [{"version": 5}, {"ordering_key": 5}])
def test_a_wrong_version_or_key_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Routes().handle("t", lambda ctx, msg: None, **wrong)


def test_middleware_that_can_not_be_called_is_refused_at_once():
    routes = Routes()

    with pytest.raises(ValueError, match="middleware"):
        routes.use(5)
    with pytest.raises(ValueError, match="middleware"):
        routes.handle("t", lambda ctx, msg: None, 5)


def test_the_decorator_without_a_topic_is_noticed():
    async def handler(ctx, msg):
        return None

    with pytest.raises(ValueError, match="needs a topic"):
        Routes().on(handler)
