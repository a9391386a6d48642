from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.performance.build import CannotBuild, build
from tests.performance.loadgen_support import SIZE, Behaviour, Server
from tests.performance.processes import Cores, RunningServer, Tools, generate
from tests.performance.sample import Sample

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
"""Stretches every wait on slow machines."""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    folder = tmp_path_factory.mktemp("bench")
    try:
        programs = build(folder)
    except CannotBuild as missing:
        pytest.skip(str(missing))
    return Tools(programs, Cores.of_this_machine(), folder)


@pytest.fixture
def run(tools: Tools) -> Iterator[Callable[..., Sample]]:
    started: list[Server] = []

    def run(mode: str, behave: Behaviour, headers: bytes = b"", **options: object) -> Sample:
        certificate = tools.certificate if "tls" in options else None
        started.append(server := Server(behave, headers, certificate))
        running = RunningServer(os.getpid(), server.port, server.trigger)
        usual = {"clients": 1, "batch": 4, "size": SIZE, "room": 1, "seconds": 0.02}
        options = {**usual, "warm-up": 0, "expect": '"status":"ok"', **options}
        return generate(tools, mode, running, options, deadline=3 * UNIT)

    yield run
    for server in started:
        server.close()
