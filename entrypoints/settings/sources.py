"""The sources of settings: a file, the environment, and the caller.

Rules of this file:

1. A later source overrides an earlier one, key by key.
2. Values are not checked here. Each has its origin, so that a mistake can be found.
3. A message about an unreadable file never quotes its text: it may be a secret.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eyewall.application.ports.extras import needs

PREFIX = "EYEWALL_"
CONFIG = "EYEWALL_CONFIG"
"""The variable that names the file. It is no setting."""

_FOREIGN = re.compile(
    r"EYEWALL_(CONFIG|TEST_\w+)="
    r"|EYEWALL_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)="
    r"|EYEWALL_(\w+_)?PORT=(tcp|udp|sctp)://"
)
"""Variables with the prefix that are no settings: the name of the file, those of the tests, and
those that Kubernetes sets in each container for a service named eyewall, or eyewall-ops."""

CALLER = "the command line or the caller"
"""The origin of a value that is in no file and no variable."""

DEFAULT_FILE = "eyewall.toml"
MAX_DEPTH = 2  # a group and its key

Table = dict[str, Any]


@dataclass(slots=True)
class Sources:
    """The merged sources; ``origins`` has the origin of each value by its dotted key."""

    values: Table = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    file: Path | None = None
    """The file that was read, or that can't be read; None without a file."""

    def put(self, group: str | None, key: str, value: Any, origin: str) -> None:
        """Set one key; overrides an earlier source."""
        table = self.values
        if group is not None:
            table = self._group(group)
        table[key] = value
        self.origins[key if group is None else f"{group}.{key}"] = origin

    def _group(self, group: str) -> Table:
        table = self.values.get(group, {})
        if not isinstance(table, dict):
            # Reported here: the table replaces the value, so the schema can't see it.
            origin = self.origins.pop(group)
            self.mistakes.append(f"{group}: expected a table of settings ({origin})")
            table = {}
        self.values[group] = table
        return table

    def put_all(self, table: Mapping[Any, Any], origin: str) -> None:
        """Set the keys of a file or of the caller, nested by group."""
        for key, value in table.items():
            if not isinstance(value, Mapping):
                self.put(None, str(key), value, origin)
                continue
            self._group(str(key))
            for inner, found in value.items():
                self.put(str(key), str(inner), found, origin)

    def origin(self, key: str) -> str | None:
        """Return the origin of a key, for a group that of its first key; None without one."""
        inner = (where for at, where in self.origins.items() if at.startswith(f"{key}."))
        return self.origins.get(key) or next(inner, None)


def read_sources(
    path: str | Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> Sources:
    """Return all sources merged. An unreadable file is reported among the mistakes."""
    sources = Sources()
    for file in _files(path, environ):
        sources.file = file.absolute()
        try:
            sources.put_all(_read_file(file), str(file))
        except _Unreadable as unreadable:
            sources.mistakes.append(f"{file}: {unreadable}")
    _read_environment(environ, sources)
    sources.put_all(overrides, CALLER)
    return sources


def file_to_read(path: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that ``path`` or else the environment names, else the default file."""
    return Path(path or environ.get(CONFIG) or DEFAULT_FILE).expanduser()


def _files(path: str | Path | None, environ: Mapping[str, str]) -> Iterator[Path]:
    file = file_to_read(path, environ)
    if path or environ.get(CONFIG) or file.is_file():  # the default one may be missing
        yield file


def variable_hint(text: str, origin: str | None) -> str:
    """Return how a suggested key is written as a variable if ``origin`` is one, else "": the two
    underscores are easily missed."""
    found = re.search(r"did you mean (\w+\.\w+)\?$", text)
    if found is None or not (origin or "").startswith(PREFIX):
        return ""
    return f" As a variable it is {PREFIX}{found[1].replace('.', '__').upper()} (two underscores)"


class _Unreadable(Exception):
    """A file is missing, or not of its format."""


def _read_file(path: Path) -> Mapping[Any, Any]:
    readers = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise _Unreadable("expected a file that ends in .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _Unreadable(f"can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _Unreadable("expected text in UTF-8") from None
    table = reader(text)
    if not isinstance(table, Mapping):
        raise _Unreadable("expected a table of settings")
    return table


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _Unreadable(_toml_mistake(str(error))) from None


def _toml_mistake(message: str) -> str:
    """Return where a text is not TOML and what is expected there, from the parser's message."""
    where = re.search(r"line \d+, column \d+", message)
    text = f"expected TOML, but {where[0] if where else 'its end'} is not"
    why = message.partition(" (at ")[0]
    if re.match(r"Cannot|Duplicate", why):  # the message quotes the key, which may be a token
        return f"{text}: a table or key is defined twice"
    constant = re.match(r"Expected|Invalid|Unclosed|Unterminated|Unescaped|Escaped", why)
    return f"{text}: {why[0].lower()}{why[1:]}" if constant else text


_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")


def _harmless(quoted: re.Match[str]) -> str:
    """Return a quotation of the YAML parser if it is one sign or ``<stream end>``, else "..."."""
    inner = quoted[1] or quoted[2] or ""
    return quoted[0] if len(inner) <= 1 or inner.startswith("<") else "..."


def _yaml(text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  (an extra)
    except ImportError:
        raise _Unreadable(needs("reading YAML", "yaml")) from None
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "some of it"
        is_form = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        problem = getattr(error, "problem", None) if is_form else None
        why = _QUOTED.sub(_harmless, problem or "")
        text = f"expected YAML, but {where} is not"
        raise _Unreadable(f"{text}: {why}" if why else text) from None


def _read_environment(environ: Mapping[str, str], sources: Sources) -> None:
    # Many platforms set PORT; the name with the prefix overrides it.
    if environ.get("PORT"):
        sources.put("server", "port", environ["PORT"], "PORT")
    for variable, value in sorted(environ.items()):
        # An empty variable counts as not set: compose files produce them.
        if not variable.startswith(PREFIX) or not value or _FOREIGN.match(f"{variable}={value}"):
            continue
        path = variable.removeprefix(PREFIX).lower().split("__")
        if len(path) > MAX_DEPTH:
            # The rest of the name may be a token and is not shown.
            start = PREFIX + "__".join(path[:MAX_DEPTH]).upper()
            sources.mistakes.append(f"{start}__...: expected one variable {start} for all of it")
            continue
        sources.put(path[0] if len(path) == MAX_DEPTH else None, path[-1], value, variable)
