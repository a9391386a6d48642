"""The command ``eyewall``: serves, checks the configuration, shows the version.

A mistake of the caller (settings, ``MODULE:SERVER``) is a message on standard error and exit
status 2. An error of the machine (a port in use) is one line and status 1. Only faults of the
program show a traceback.
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

LISTEN_SETTINGS = frozenset({"server.host", "server.port", "tls.cert", "tls.key"})
"""Settings that ``serve`` applies itself, whatever the server was built from."""
FLAGS = {"host": "EYEWALL_SERVER__HOST", "port": "EYEWALL_SERVER__PORT"}
"""The flags of ``serve``, each with its environment variable."""

_ADAPTERS = {"auth": "authenticator", "bus": "pubsub", "limits": "limiter", "logging": "logger"}
"""Groups of settings whose adapter is a keyword of ``Server`` with another name."""
_DEFAULTS = {name: each.default for name, each in inspect.signature(Server).parameters.items()}

_VERSION = f"eyewall {VERSION}"


class _CommandError(Exception):
    """The command failed; ``text`` tells the caller why."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. ``argv`` are the arguments; None takes those of
    the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options, arguments))
    except SettingsError as error:
        print(f"eyewall: {error}", file=sys.stderr)
        return WRONG_USE
    except _CommandError as error:
        print(f"eyewall: {error}", file=sys.stderr)
        return error.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eyewall", description="A real-time hub.", allow_abbrev=False
    )
    parser.add_argument(
        "--version", action="version", version=_VERSION, help="show the version and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="run a server, or without one the chat", allow_abbrev=False
    )
    serve.add_argument(
        "server",
        nargs="?",
        metavar="MODULE:SERVER",
        help="module and name of the server, such as shop:server",
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
        # The file may be created later.
        file = file_to_read(options.config, os.environ).absolute()
        command = [sys.executable, "-m", "eyewall", *rest]
        return reload.serve(command, Path.cwd(), [file])
    settings = Settings.load(options.config, overrides=_overrides(options))
    # For log lines during the import; the server of the application may have another logger.
    logger = make_logger(settings.logging.kind, settings.logging.level)
    with _flags_in_environment(options), written_as(logger, sets_level=False):
        if options.server is None:
            server, private = _chat(settings)
        else:
            server, private = _load_server(options.server), {}
            _check_settings(options.server, server, settings)
        return _run(server, _listen_address(server, settings, options), private)


@contextmanager
def _flags_in_environment(options: argparse.Namespace) -> Iterator[None]:
    """Put the flags into environment variables, so that ``Settings.load()`` in the application,
    and in child processes, reads them."""
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


def _check_settings(target: str, server: Server, settings: Settings) -> None:
    """Raise ``_CommandError`` if the server ignores settings of the operator: it might run without
    the authentication of the file."""
    ignored = [
        f"{key} ({Path(settings.origins[key]).name})"
        for key in _ignored_keys(server, settings)
        if key not in LISTEN_SETTINGS
    ]
    if ignored:
        built = "Server()" if server.settings is None else "other settings"
        raise _CommandError(
            f"{target} was built from {built} and ignores what is set: {', '.join(ignored)}. "
            "Build it with Server.from_settings(), or take these settings away",
            WRONG_USE,
        )


def _ignored_keys(server: Server, settings: Settings) -> list[str]:
    """Return the keys that were set and that differ from the server's own values.

    Keys that the application overrides when it loads its settings are its own decision.
    """
    own = DEFAULT_SETTINGS if server.settings is None else server.settings
    return sorted(
        key
        for key in settings.origins
        if (own.value(key) != settings.value(key) and own.origins.get(key) != CALLER)
        or (server.settings is None and _is_changed(server, key))
    )


def _is_changed(server: Server, key: str) -> bool:
    """Whether ``Server`` was built with a keyword for ``key`` or its group."""
    group, _, inner = key.partition(".")
    names = {inner, f"{group}_{inner}", _ADAPTERS.get(group, group)} & _DEFAULTS.keys()
    return any(getattr(server.options, name, None) != _DEFAULTS[name] for name in names)


def _listen_address(
    server: Server, settings: Settings, options: argparse.Namespace
) -> tuple[str, int, ssl.SSLContext | None]:
    """Return host, port and TLS: of the command line, else of the server's own settings."""
    own = settings
    if server.settings is not None:
        is_overruled = LISTEN_SETTINGS.intersection(_ignored_keys(server, settings))
        own = settings if is_overruled else server.settings
    host = own.server.host if options.host is None else settings.server.host
    port = own.server.port if options.port is None else settings.server.port
    return host, port, _tls(own)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    try:
        return settings.tls.context()
    except SettingsError as error:  # the files are wrong, not the settings
        raise _CommandError("; ".join(error.mistakes), WRONG_USE) from None


def _run(
    server: Server, where: tuple[str, int, ssl.SSLContext | None], private: dict[str, Any]
) -> int:
    try:
        serve(server, *where, **private)
    except UnsafeConfiguration as error:
        raise _CommandError(str(error), WRONG_USE) from None
    except CannotListen as error:
        raise _CommandError(error.explain("--port"), FAILED) from None
    except Exception as error:
        if output_of(server.logger) is None:
            raise
        # The traceback is part of a log line, which a collector can read.
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
    """Return ``make()``; raises ``_CommandError`` for settings that only the parts can check."""
    try:
        return make()
    except (ValueError, ImportError) as error:  # ImportError: an extra is missing
        raise _CommandError(f"the settings don't make a server: {error}", WRONG_USE) from None


def _load_server(target: str) -> Server:
    """Return the server that ``MODULE:SERVER`` names. The working folder is importable."""
    module_name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        _no_server(target, f"expected MODULE:SERVER, such as {_suggestion(module_name, attribute)}")
    if (
        module_name.endswith(".py")
        and not Path(*module_name.split(".")).with_suffix(".py").is_file()
    ):
        _no_server(
            target, f"name the module as it is imported: {_suggestion(module_name, attribute)}"
        )
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    found: Any = _import(target, module_name)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            _no_server(target, f"there is no {name!r} in it")
    if not isinstance(found, Server):
        _no_server(target, f"its type is {type(found).__name__}, not Server")
    return found


def _suggestion(module_name: str, attribute: str) -> str:
    """Return ``MODULE:SERVER`` for a path, or for a module without its server."""
    parts = Path(module_name.removesuffix(".py").replace("\\", "/")).parts
    guess = ".".join(part for part in parts if part != ".")
    if not all(part.isidentifier() for part in guess.split(".")):
        guess = "shop"
    return f"{guess}:{attribute if attribute.isidentifier() else 'server'}"


def _import(target: str, module_name: str) -> Any:
    try:
        with importing():
            return importlib.import_module(module_name)
    except SyntaxError as error:  # its text has the line
        _no_server(target, f"importing it failed with {type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001  (an application may raise anything)
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, module_name):
            _no_server(target, f"there is no module {error.name!r}")
        _no_server(
            target, f"importing it failed with {type(error).__name__}: {error} ({_line(error)})"
        )


def _line(error: Exception) -> str:
    """Return file and line of the error in the caller's own files, else where it was raised."""
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
    """Whether ``module_name`` itself is missing, and not a module that it imports."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _no_server(target: str, why: str) -> NoReturn:
    raise _CommandError(f"can't serve {target!r}: {' '.join(why.split())}", WRONG_USE) from None
