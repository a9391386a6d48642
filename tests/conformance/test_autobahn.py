"""RFC 6455 and 7692 by Autobahn's cases, which ``kosoku`` runs against an echo.

``EYEWALL_AUTOBAHN`` names other cases (``make conformance`` does): ``9.* 12.* 13.*``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.echo import echoing
from tests.conformance.tunnel import tunnel

pytest.importorskip("kosoku", reason="Autobahn's cases come with the wheel kosoku")

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))

FRAMING = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]

# The cases of one run go side by side and share its time limit, so compression makes two runs.
GROUPS = {
    "framing": FRAMING,
    "compression": ["12.1.*"],
    "context-takeover": ["13.1.*"],
}
if chosen := os.environ.get("EYEWALL_AUTOBAHN", "").split():
    GROUPS = {case: [case] for case in chosen}

RIGHT = {"OK", "INFORMATIONAL", "NON-STRICT"}
"""NON-STRICT: right, but seen later than it could be. UNIMPLEMENTED is right only for a
window that we decline."""

DECLINED = ("13.3.", "13.5.")
"""Groups whose only offer asks us for a window below 15."""


async def run(cases: list[str], port: int, into: Path) -> dict[str, dict[str, Any]]:
    """Run the cases against the port; returns their outcomes by id."""
    program = Path(sys.executable).with_name("kosoku")
    picked = [word for case in cases for word in ("-i", case)]
    arguments = ["-m", "fuzzingclient", *picked, "-o", str(into), f"127.0.0.1:{port}/ws"]
    process = await asyncio.create_subprocess_exec(
        str(program), *arguments, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    # By the server's name; a case that broke off before it knew that stands by itself.
    by_agent = json.loads((into / "index.json").read_text())
    return {case: outcome for found in by_agent.values() for case, outcome in found.items()}


def is_right(case: str, outcome: dict[str, Any]) -> bool:
    declined = outcome["behavior"] == "UNIMPLEMENTED" and case.startswith(DECLINED)
    return (declined or outcome["behavior"] in RIGHT) and outcome["behaviorClose"] in RIGHT


@pytest.mark.timeout(3600 * UNIT)
@pytest.mark.parametrize("cases", GROUPS.values(), ids=GROUPS)
async def test_the_cases_of_autobahn(cases, tmp_path):
    async with echoing() as server:
        assert server.port is not None
        outcomes = await run(cases, server.port, tmp_path)

    assert_right(outcomes)


@pytest.mark.timeout(3600 * UNIT)
async def test_the_cases_of_autobahn_over_tls(tmp_path):
    """The suite speaks no TLS: something before it does."""
    async with echoing(tls=True) as server:
        assert server.port is not None
        async with tunnel(server.port) as port:
            outcomes = await run(FRAMING, port, tmp_path)

    assert_right(outcomes)


def assert_right(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes
    wrong = {
        case: (outcome["behavior"], outcome["behaviorClose"])
        for case, outcome in outcomes.items()
        if not is_right(case, outcome)
    }
    assert wrong == {}
