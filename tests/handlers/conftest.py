"""Ask a Tornado application that pytest-tornado serves. Each module has a fixture ``app``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

Fetch = Callable[..., Awaitable[HTTPResponse]]


@pytest.fixture
def fetch(http_client: AsyncHTTPClient, http_port: int) -> Fetch:
    """Takes a path and options of a Tornado request; returns the response, whatever its status."""

    def fetch(path: str, **options: Any) -> Awaitable[HTTPResponse]:
        url = f"http://127.0.0.1:{http_port}{path}"
        return http_client.fetch(url, raise_error=False, follow_redirects=False, **options)

    return fetch
