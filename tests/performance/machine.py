"""What the figures were measured on, for the page."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
from importlib import metadata
from pathlib import Path

from tests.performance.build import compiler

PACKAGES = (
    "tornado",
    "msgspec",
    "websockets",
    "aiohttp",
    "picows",
    "python-socketio",
    "uvicorn",
    "httptools",
    "uvloop",
)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str, otherwise: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return otherwise


def facts() -> dict[str, str]:
    """Return what a reader has to know to make sense of the figures."""
    cc = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "eyewall": _version("eyewall", "from this working copy"),
        **{name: _version(name, "not here") for name in PACKAGES},
        "OpenSSL": ssl.OPENSSL_VERSION.removeprefix("OpenSSL "),
        "C compiler": f"{cc.stdout.splitlines()[0]}, -O2",
        "load when it began": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
    }
