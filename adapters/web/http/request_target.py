"""Request targets (RFC 9112, 3.2): the absolute form is normalized, queries are redacted in logs.

A client that is configured for a proxy sends the whole URL (``GET ws://host/ws HTTP/1.1``, the
absolute form). A server must accept it, and its host replaces the ``Host`` field (3.2.2).
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from tornado.escape import url_unescape
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPServerRequest, RequestStartLine
from tornado.routing import Matcher
from tornado.web import RequestHandler

MASK: Final = "***"

_ABSOLUTE = re.compile(
    r"(?:https?|wss?)://(?:[^/?#@]*@)?(?P<host>[^/?#@]+)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?",
    re.IGNORECASE,
)
_SCHEME = re.compile("(?:http|ws)s?://", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[^\[\]:]+)(?::[0-9]*)?", re.IGNORECASE)


class RequestTarget(NamedTuple):
    """The parts of an absolute form."""

    uri: str
    """Path and query; an empty path is ``/``."""
    host: str
    """With its port, if it has one, and without ``user:password@``."""


def parse_absolute_form(uri: str) -> RequestTarget | None:
    """Return the parts of an absolute form; None for another form, or a malformed one."""
    found = _ABSOLUTE.fullmatch(uri)
    if found is None or _HOST.fullmatch(found["host"]) is None:
        return None
    return RequestTarget(f"{found['path'] or '/'}{found['query'] or ''}", found["host"])


def normalize(start_line: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """Return the start line with its target in origin form. The host of an absolute form
    replaces ``Host`` in ``headers``. Raises ``HTTPInputError`` for a malformed URL."""
    if _SCHEME.match(start_line.path) is None:
        return start_line
    target = parse_absolute_form(start_line.path)
    if target is None:
        raise HTTPInputError("the URL in the request line can't be read")
    # A missing or repeated Host is left alone, to be refused (RFC 9112, 3.2).
    if len(headers.get_list("Host")) == 1 or start_line.version == "HTTP/1.0":
        headers["Host"] = target.host
    return start_line._replace(path=target.uri)


def redact_query(uri: str) -> str:
    """Return a request target for the log. Its query is masked, because it may be a token."""
    path, question, query = uri.partition("?")
    scheme, _, rest = path.rpartition("://")
    if scheme and "@" in rest.partition("/")[0]:
        path = f"{scheme}://{rest.partition('@')[2]}"
    return f"{path}?{MASK}" if question and query else path


class AbsoluteFormMatcher(Matcher):
    """Matches requests for ``pattern`` in absolute form, and normalizes them.

    For applications on Tornado's own server. ``LimitedServer`` has normalized them before.
    """

    def __init__(self, pattern: str) -> None:
        self._path = re.compile(pattern if pattern.endswith("$") else f"{pattern}$")

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        target = parse_absolute_form(request.uri or "")
        if target is None:
            return None
        path = target.uri.partition("?")[0]
        found = self._path.match(path)
        if found is None:
            return None
        request.uri, request.path = target.uri, path
        request.headers["Host"] = request.host = target.host
        named = found.groupdict()
        unnamed = () if named else found.groups()
        return {
            "path_kwargs": {name: _unquoted(value) for name, value in named.items()},
            "path_args": [_unquoted(value) for value in unnamed],
        }


def _unquoted(value: str | None) -> bytes | None:
    return None if value is None else url_unescape(value, encoding=None, plus=False)


class RedactingHandler(RequestHandler):
    """A request handler that masks the query in ``request.uri``.

    The access log, the log lines of a failing handler and the ``repr`` of a request all contain
    ``request.uri``.
    """

    def __init__(self, application: Any, request: HTTPServerRequest, **kwargs: Any) -> None:
        request.uri = redact_query(request.uri or "")
        super().__init__(application, request, **kwargs)

    def _log(self) -> None:
        # The application's log function may raise, after the answer and before its end.
        try:
            super()._log()
        except BaseException:  # noqa: BLE001, S110  (only a log line is lost)
            pass
