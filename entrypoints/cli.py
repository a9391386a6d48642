"""The command ``eyewall``: serve, check the configuration, say the version.

What the caller got wrong (settings, ``MODULE:SERVER``) is told on standard error and ends
with 2; what the machine refuses (a port in use) in one line, and ends with 1. Neither
shows a traceback: that is for faults of the program.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import ssl
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from eyewall import chat
from eyewall.adapters.observe.logs import make_logger, output_of
from eyewall.adapters.observe.records import written_as
from eyewall.application.ports.logging import shown
from eyewall.domain.errors import UnsafeConfiguration
from eyewall.server import reload
from eyewall.server.listener import CannotListen
from eyewall.server.runner import importing
from eyewall.server.server import DEFAULT_SETTINGS, Server, serve
from eyewall.settings.groups import SettingsError
from eyewall.settings.settings import Settings, source_of
from eyewall.settings.sources import CALLER, CONFIG, file_to_read
from eyewall.version import VERSION

OK, FAILED, WRONG_USE = 0, 1, 2

APPLIED = frozenset({"server.host", "server.port", "tls.cert", "tls.key"})
"""The settings that ``serve`` itself sees to, whatever the server was built from."""
FLAGS = {"host": "EYEWALL_SERVER__HOST", "port": "EYEWALL_SERVER__PORT"}
"""What the flags of ``serve`` are called in the environment."""

_PORTS = {"auth": "authenticator", "bus": "pubsub", "limits": "limiter", "logging": "logger"}
"""The groups of settings that are called otherwise among a ``Server``'s keywords."""
_DEFAULTS = {name: each.default for name, each in inspect.signature(Server).parameters.items()}

_VERSION = f"eyewall {VERSION}"


class _Stop(Exception):
    """The command can't go on; ``text`` says why in words for the caller."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (the process's own if None); return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options, arguments))
    except SettingsError as error:
        print(f"eyewall: {error}", file=sys.stderr)
        return WRONG_USE
    except _Stop as stop:
        print(f"eyewall: {stop}", file=sys.stderr)
        return stop.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eyewall", description="A real-time hub.", allow_abbrev=False
    )
    parser.add_argument(
        "--version", action="version", version=_VERSION, help="show the version, and no more"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="run a server, or without one the chat", allow_abbrev=False
    )
    serve.add_argument(
        "server", nargs="?", metavar="MODULE:SERVER", help="where the server is, as in shop:server"
    )
    serve.add_argument("--host", help="the addresses to listen on (127.0.0.1), or * for all")
    serve.add_argument("--port", help="the port to listen on (PORT, or 8080); 0 takes a free one")
    serve.add_argument(
        "--reload",
        action="store_true",
        help="start again when a .py file here, or the settings file, changes",
    )
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check-config", help="show the settings, or what is wrong in them")
    check.set_defaults(run=_check_config)
    for command in (serve, check):
        command.add_argument("--config", metavar="FILE", help="a TOML or YAML file of settings")

    version = commands.add_parser("version", help="show the version")
    version.set_defaults(run=_version)
    return parser


def _version(_options: argparse.Namespace, _arguments: Sequence[str]) -> int:
    print(_VERSION)
    return OK


def _check_config(options: argparse.Namespace, _arguments: Sequence[str]) -> int:
    settings = Settings.load(options.config)
    _build(lambda: Server.from_settings(settings))
    _tls(settings)
    print(f"# read from {source_of(settings)}")
    print(settings.describe())
    return OK


def _serve(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.reload:
        rest = [argument for argument in arguments if argument != "--reload"]
        # A file that does not exist yet may be written later.
        file = file_to_read(options.config, os.environ).absolute()
        command = [sys.executable, "-m", "eyewall", *rest]
        return reload.serve(command, Path.cwd(), [file])
    settings = Settings.load(options.config, overrides=_overrides(options))
    # What the application logs while it is imported; its server may write otherwise.
    logger = make_logger(settings.logging.kind, settings.logging.level)
    with _told(options), written_as(logger, sets_level=False):
        if options.server is None:
            server, private = _chat(settings)
        else:
            server, private = _find(options.server), {}
            _check_settings(options.server, server, settings)
        return _run(server, _place(server, settings, options), private)


@contextmanager
def _told(options: argparse.Namespace) -> Iterator[None]:
    """Have ``Settings.load()`` find what the command line says, wherever it is called: in
    the application, and in the processes that this one starts."""
    before = dict(os.environ)
    if options.config:
        os.environ[CONFIG] = str(Path(options.config).expanduser().absolute())
    for flag, variable in FLAGS.items():
        if (value := getattr(options, flag)) is not None:
            os.environ[variable] = value
    try:
        yield
    finally:
        for variable in (CONFIG, *FLAGS.values()):
            os.environ.pop(variable, None)
            if variable in before:
                os.environ[variable] = before[variable]


def _check_settings(place: str, server: Server, settings: Settings) -> None:
    """Stop where the server was built without what the operator has set: it would run
    without the authentication, say, that the file asks for."""
    ignored = [
        f"{key} ({Path(settings.origins[key]).name})"
        for key in _unseen(server, settings)
        if key not in APPLIED
    ]
    if ignored:
        built = "Server()" if server.settings is None else "other settings"
        raise _Stop(
            f"{place} was built from {built} and ignores what is set: {', '.join(ignored)}. "
            "Build it with Server.from_settings(), or take these settings away",
            WRONG_USE,
        )


def _unseen(server: Server, settings: Settings) -> list[str]:
    """Return the keys that were set and that the server would act against.

    What the application said itself where it read its settings is its own decision.
    """
    own = DEFAULT_SETTINGS if server.settings is None else server.settings
    return sorted(
        key
        for key in settings.origins
        if (own.value(key) != settings.value(key) and own.origins.get(key) != CALLER)
        or (server.settings is None and _is_changed(server, key))
    )


def _is_changed(server: Server, key: str) -> bool:
    """Whether a keyword for ``key`` or its group was given to the ``Server`` itself."""
    group, _, inner = key.partition(".")
    names = {inner, f"{group}_{inner}", _PORTS.get(group, group)} & _DEFAULTS.keys()
    return any(getattr(server.options, name, None) != _DEFAULTS[name] for name in names)


def _place(
    server: Server, settings: Settings, options: argparse.Namespace
) -> tuple[str, int, ssl.SSLContext | None]:
    """Where to listen: the command line counts more than the server's own settings."""
    own = settings
    if server.settings is not None:
        own = settings if APPLIED.intersection(_unseen(server, settings)) else server.settings
    host = own.server.host if options.host is None else settings.server.host
    port = own.server.port if options.port is None else settings.server.port
    return host, port, _tls(own)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    try:
        return settings.tls.context()
    except SettingsError as error:  # the files are wrong, and no setting
        raise _Stop("; ".join(error.mistakes), WRONG_USE) from None


def _run(
    server: Server, where: tuple[str, int, ssl.SSLContext | None], private: dict[str, Any]
) -> int:
    try:
        serve(server, *where, **private)
    except UnsafeConfiguration as error:
        raise _Stop(str(error), WRONG_USE) from None
    except CannotListen as error:
        raise _Stop(error.explain("--port"), FAILED) from None
    except Exception as error:
        if output_of(server.logger) is None:
            raise
        # With its trace, but as a line like the others: a collector reads them.
        server.logger.error("serve_failed", error=shown(error), exc_info=error)
        return FAILED
    return OK


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    flags = {"host": options.host, "port": options.port}
    overrides: dict[str, Any] = {"server": {k: v for k, v in flags.items() if v is not None}}
    if options.server is None:
        overrides["client_commands"] = True  # the chat's pages speak them
    return overrides


def _chat(settings: Settings) -> tuple[Server, dict[str, Any]]:
    return _build(lambda: chat.make_server(settings)), {"pages": chat.pages()}


def _build(make: Callable[[], Server]) -> Server:
    """Build a server; what only its parts know to be wrong is a mistake in the settings."""
    try:
        return make()
    except (ValueError, ImportError) as error:  # an import fails where an extra is missing
        raise _Stop(f"the settings don't make a server: {error}", WRONG_USE) from None


def _find(place: str) -> Server:
    """Return the server that ``MODULE:SERVER`` names; the working folder is importable."""
    module_name, _, attribute = place.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        _no_server(place, f"expected MODULE:SERVER, such as {_spelled(module_name, attribute)}")
    if (
        module_name.endswith(".py")
        and not Path(*module_name.split(".")).with_suffix(".py").is_file()
    ):
        _no_server(place, f"it is named as it is imported: {_spelled(module_name, attribute)}")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    found: Any = _import(place, module_name)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            _no_server(place, f"there is no {name!r} in it")
    if not isinstance(found, Server):
        _no_server(place, f"its type is {type(found).__name__}, not Server")
    return found


def _spelled(module_name: str, attribute: str) -> str:
    """Guess what is meant by a path, or by a module without its server."""
    parts = Path(module_name.removesuffix(".py").replace("\\", "/")).parts
    guess = ".".join(part for part in parts if part != ".")
    if not all(part.isidentifier() for part in guess.split(".")):
        guess = "shop"
    return f"{guess}:{attribute if attribute.isidentifier() else 'server'}"


def _import(place: str, module_name: str) -> Any:
    try:
        with importing():
            return importlib.import_module(module_name)
    except SyntaxError as error:  # its text says where
        _no_server(place, f"importing it failed with {type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001  (a user's module may raise anything)
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, module_name):
            _no_server(place, f"there is no module {error.name!r}")
        _no_server(
            place, f"importing it failed with {type(error).__name__}: {error} ({_line(error)})"
        )


def _line(error: Exception) -> str:
    """Say where in the caller's own files it came up; if in none, where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = Path.cwd()
    own = [
        frame
        for frame in frames
        if Path(frame.filename).is_relative_to(folder) and "site-packages" not in frame.filename
    ]
    where = (own or frames)[-1]
    return f"{Path(where.filename).name}, line {where.lineno}"


def _is_part_of(missing: str | None, module_name: str) -> bool:
    """Tell a module that is not there from one that imports what is not there."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _no_server(place: str, why: str) -> NoReturn:
    raise _Stop(f"can't serve {place!r}: {' '.join(why.split())}", WRONG_USE) from None
