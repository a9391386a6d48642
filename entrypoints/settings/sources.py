"""Where settings come from: a file, the environment, and what the caller says.

A later source counts more, key by key. Nothing here judges a value; it only says where
it came from, so that a mistake can be found. A file's own words are never quoted when it
can't be read: they may be secrets.
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
"""The variable that names the file. It is not a setting itself."""

_NOT_OURS = re.compile(
    r"EYEWALL_(CONFIG|TEST_\w+)="
    r"|EYEWALL_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)="
    r"|EYEWALL_(\w+_)?PORT=(tcp|udp|sctp)://"
)
"""What else may begin so: the name of the file, the tests' own, and what Kubernetes sets
in every container where a service is named eyewall, or eyewall-ops."""

CALLER = "the command line or the caller"
"""Where a value is from that is in no file and no variable."""

DEFAULT_FILE = "eyewall.toml"
DEEPEST = 2  # a group and its key

Table = dict[str, Any]


@dataclass(slots=True)
class Sources:
    """All sources put together; ``origins`` has where the value of a dotted key is from."""

    values: Table = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    file: Path | None = None
    """The file that was read, or should have been; None if there is none."""

    def put(self, group: str | None, key: str, value: Any, origin: str) -> None:
        """Set one key, over what an earlier source said."""
        table = self.values
        if group is not None:
            table = self._group(group)
        table[key] = value
        self.origins[key if group is None else f"{group}.{key}"] = origin

    def _group(self, group: str) -> Table:
        table = self.values.get(group, {})
        if not isinstance(table, dict):
            # Told here: nobody sees it any more once the table has taken its place.
            origin = self.origins.pop(group)
            self.mistakes.append(f"{group}: expected a table of settings ({origin})")
            table = {}
        self.values[group] = table
        return table

    def put_all(self, table: Mapping[Any, Any], origin: str) -> None:
        """Set what a file or the caller has, a group at a time."""
        for key, value in table.items():
            if not isinstance(value, Mapping):
                self.put(None, str(key), value, origin)
                continue
            self._group(str(key))
            for inner, found in value.items():
                self.put(str(key), str(inner), found, origin)

    def origin(self, key: str) -> str | None:
        """Return where the value of ``key`` came from, or the first of its group's."""
        inner = (where for at, where in self.origins.items() if at.startswith(f"{key}."))
        return self.origins.get(key) or next(inner, None)


def gather(
    path: str | Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> Sources:
    """Read every source. What can't be read is a mistake like any other, not an end."""
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
    """Return the file that ``path`` or the environment names, else the default one."""
    return Path(path or environ.get(CONFIG) or DEFAULT_FILE).expanduser()


def _files(path: str | Path | None, environ: Mapping[str, str]) -> Iterator[Path]:
    file = file_to_read(path, environ)
    if path or environ.get(CONFIG) or file.is_file():  # the default one may be missing
        yield file


def as_variable(text: str, origin: str | None) -> str:
    """Say what a suggested key is called as a variable, if ``origin`` is one: the two
    underscores are easily missed."""
    found = re.search(r"did you mean (\w+\.\w+)\?$", text)
    if found is None or not (origin or "").startswith(PREFIX):
        return ""
    return f" As a variable it is {PREFIX}{found[1].replace('.', '__').upper()} (two underscores)"


class _Unreadable(Exception):
    """A file that is not there, or not of its format."""


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


def _toml_mistake(told: str) -> str:
    """Say where the text is not TOML, and what was expected there."""
    place = re.search(r"line \d+, column \d+", told)
    text = f"expected TOML, but {place[0] if place else 'its end'} is not"
    why = told.partition(" (at ")[0]
    if re.match(r"Cannot|Duplicate", why):  # with the key, which may be a token
        return f"{text}: a table or key is there twice"
    constant = re.match(r"Expected|Invalid|Unclosed|Unterminated|Unescaped|Escaped", why)
    return f"{text}: {why[0].lower()}{why[1:]}" if constant else text


_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")


def _harmless(quoted: re.Match[str]) -> str:
    """Of what a parser quotes, only a sign, and its own ``<stream end>``; not the file's words."""
    inner = quoted[1] or quoted[2] or ""
    return quoted[0] if len(inner) <= 1 or inner.startswith("<") else "..."


def _yaml(text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  (an extra: only who writes YAML needs it)
    except ImportError:
        raise _Unreadable(needs("reading YAML", "yaml")) from None
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "some of it"
        is_form = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        problem = getattr(error, "problem", None) if is_form else None
        why = _QUOTED.sub(_harmless, problem or "")
        text = f"expected YAML, but {place} is not"
        raise _Unreadable(f"{text}: {why}" if why else text) from None


def _read_environment(environ: Mapping[str, str], sources: Sources) -> None:
    # PORT is what many platforms set; our own name for it says more.
    if environ.get("PORT"):
        sources.put("server", "port", environ["PORT"], "PORT")
    for variable, value in sorted(environ.items()):
        # An empty variable counts as not set, as a compose file leaves them.
        if not variable.startswith(PREFIX) or not value or _NOT_OURS.match(f"{variable}={value}"):
            continue
        path = variable.removeprefix(PREFIX).lower().split("__")
        if len(path) > DEEPEST:
            # The rest of the name is not shown: it may be a token.
            start = PREFIX + "__".join(path[:DEEPEST]).upper()
            sources.mistakes.append(f"{start}__...: expected one variable {start} for all of it")
            continue
        sources.put(path[0] if len(path) == DEEPEST else None, path[-1], value, variable)
