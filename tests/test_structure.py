"""The shape of the repository: where imports point, what is tested, what is public."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = {  # a layer may import itself and what is named here
    "domain": set(),
    "application": {"domain"},
    "adapters": {"application", "domain"},
    "entrypoints": {"adapters", "application", "domain"},
}
STDLIB_ONLY = ("domain", "application")
IMPURE = {"asyncio", "logging", "os", "random", "secrets", "socket", "threading", "time", "uuid"}

MOST_LINES = 650

PUBLIC = {
    *(
        "Server",
        "Routes",
        "Settings",
        "SettingsError",
        "Hub",
        "Context",
        "Connection",
        "Envelope",
        "Raw",
    ),
    # ids
    *("ConnId", "UserId", "RoomId", "NodeId", "MessageId"),
    # options
    *("Message", "Priority", "SendOptions", "AckOptions", "QueueConfig", "DropPolicy"),
    *("CompressionConfig", "RetryPolicy"),
    *("HeartbeatConfig", "RoomOptions", "RoomPolicy", "JoinOptions", "RoomRole", "ConnMeta"),
    *("Target", "Where"),
    # results
    *(
        "DeliveryReport",
        "DeliveryStatus",
        "SendResult",
        "SendAttempt",
        "BatchDeliveryReport",
        "AckResult",
        "Acker",
        "PresenceState",
    ),
    *("Membership", "Member", "RoomInfo", "PendingAck", "HubStats"),
    *("HistoryPage", "BackgroundTask"),
    *("Failure", "FailureReason", "DisconnectReason"),
    # errors
    *("EyewallError", "Refused", "Unavailable", "Misuse", "UnsafeConfiguration"),
    *("HandlerNotFound", "RateLimited", "Overloaded", "Unauthorized", "Forbidden"),
    *("ValidationError", "InvalidEnvelope", "RoomNotFound", "RoomExists", "RoomFull"),
    *("JoinForbidden", "NotAMember", "ConnectionClosed", "QueueFull", "SlowConsumer"),
    *("UserOffline", "AckTimeout", "Nacked", "ShuttingDown"),
    # ports
    *("Handshake", "Authenticator", "AccessController", "Validator", "Limiter", "Metrics"),
    *("Tracer", "Logger", "PubSub", "Subscription", "StateStore", "HistoryStore", "Codec"),
    "OfflineStore",
    # adapters
    *("MemoryPubSub", "MemoryState", "TokenBucketLimiter", "MarshmallowValidator"),
    # what types of the above are made of, and the version
    *("StreamPosition", "Handler", "Middleware", "__version__"),
}


def modules(*layers: str) -> Iterator[Path]:
    for layer in layers or LAYERS:
        yield from sorted((ROOT / layer).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class AtRunTime(ast.NodeTransformer):
    """Leaves out what only type checkers see."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        is_for_checkers = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return node.orelse if is_for_checkers else self.generic_visit(node)


@functools.cache
def imports(path: Path, *, at_run_time: bool = False) -> tuple[str, ...]:
    """Every module that a file imports, in full, wherever in the file it does."""
    return tuple(_imports(path, at_run_time=at_run_time))


def _imports(path: Path, *, at_run_time: bool) -> Iterator[str]:
    tree: ast.AST = ast.parse(path.read_text())
    for node in ast.walk(AtRunTime().visit(tree) if at_run_time else tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)} imports {node.module} relatively"
            # "from eyewall.domain import room" imports eyewall.domain.room
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> str | None:
    """The layer that a module of ours belongs to; None for one of somebody else."""
    package, _, rest = name.partition(".")
    if package != "eyewall":
        return None
    layer = rest.partition(".")[0]
    return layer if layer in LAYERS else "entrypoints"


def every_module(*layers: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", list(modules(*layers)), ids=relative)


@every_module()
def test_arrows_point_inward(path):
    """domain <- application <- adapters <- entrypoints, and never the other way."""
    here = relative(path).partition("/")[0]

    for name in imports(path):
        there = layer_of(name)
        assert there is None or there == here or there in LAYERS[here], name


@every_module(*STDLIB_ONLY)
def test_the_rules_need_the_standard_library_only(path):
    for name in imports(path, at_run_time=True):
        top = name.partition(".")[0]
        assert top == "eyewall" or top in sys.stdlib_module_names, name


@every_module("domain")
def test_the_domain_is_told_the_time_and_the_ids(path):
    """It reads no clock, makes no id, waits for nothing and logs nothing."""
    assert not IMPURE & {name.partition(".")[0] for name in imports(path)}


@every_module("adapters")
def test_adapters_of_different_ports_do_not_know_each_other(path):
    own = relative(path).split("/")[1]

    for name in imports(path):
        if name.startswith("eyewall.adapters."):
            assert name.split(".")[2] == own, name


@every_module()
def test_only_the_container_knows_dependency_injector(path):
    if relative(path) == "entrypoints/container.py":
        return
    assert "dependency_injector" not in {name.partition(".")[0] for name in imports(path)}


@every_module()
def test_every_package_has_its_tests(path):
    """Tests of domain/ stand in tests/domain, those of adapters/auth/ in files that begin
    with test_auth, and so on; a file is named for what it tests, not for one module."""
    layer, *inner = path.relative_to(ROOT).parent.parts
    tests = ROOT / "tests" / layer

    assert list(tests.glob(f"test_{'_'.join(inner)}*.py")) or (tests / Path(*inner)).is_dir()


@every_module()
def test_a_module_reads_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The public functions of a module, and the public methods of its public classes, but for
    those whose meaning a Protocol of the module gives."""
    body = ast.parse(path.read_text()).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    protocols = [c for c in classes if any("Protocol" in ast.unparse(base) for base in c.bases)]
    given = {item.name for c in protocols for item in c.body if isinstance(item, ast.FunctionDef)}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
    for found in classes:
        if found in protocols or found.name.startswith("_"):
            continue
        for item in found.body:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name not in given:
                yield f"{found.name}.{item.name}", item


@every_module("application")
def test_every_public_function_of_the_application_says_what_it_does(path):
    for name, function in public_functions(path):
        public = not name.rpartition(".")[2].startswith("_")
        assert not public or ast.get_docstring(function), f"{name} has no docstring"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=relative)
def test_no_test_uses_mocks(path):
    """A mock says what the code does, not what it is for: fakes behave."""
    assert not any(name.startswith(("unittest.mock", "mock")) for name in imports(path))


def test_every_folder_is_packaged():
    """What is not in pyproject's list would be missing from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        path.parent.relative_to(ROOT)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {".".join(("eyewall", *folder.parts)) for folder in folders}
    names = {name.replace("eyewall.entrypoints", "eyewall") for name in names}
    names.add("eyewall.javascript")  # clients/js: the hub serves the client

    assert set(project["tool"]["setuptools"]["packages"]) == names


def test_the_extra_all_takes_in_every_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    everything = extras.pop("all")

    assert everything == [f"eyewall[{','.join(extras)}]"]


def test_public_names_are_exactly_these():
    """Programs that nobody here wrote import them; adding or losing one is a decision."""
    import eyewall

    assert set(eyewall.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_can_be_imported(name):
    import eyewall

    assert hasattr(eyewall, name)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_what_help_says_names_no_page_that_is_not_there(name):
    """A reader of ``help(Server)`` has the repository, and nothing else."""
    import eyewall

    found = getattr(eyewall, name)
    members = vars(found).values() if isinstance(found, type) else ()
    texts = [each.__doc__ for each in (found, *members)]
    for text in texts:
        for page in re.findall(r"[\w/-]+\.md", text if isinstance(text, str) else ""):
            assert (ROOT / page).exists() or (ROOT / "docs" / page).exists(), page
