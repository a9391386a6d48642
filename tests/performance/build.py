"""Compiles the floor and the load generator, each time anew, into a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
LOADGEN = ("loadgen", "fanout", "requests", "idle", "client", "wire", "inflate", "meter")
PROGRAMS = {"floor": (("floor",), ()), "loadgen": (LOADGEN, ("ssl", "crypto", "z"))}
"""Sources and libraries of each."""


class CannotBuild(Exception):
    """The floor and the load generator can't be compiled."""


class NoCompiler(CannotBuild):
    """There is nothing to compile them with."""

    def __init__(self) -> None:
        super().__init__(
            "no C compiler: the floor and the load generator are written in C. "
            "Install one that answers to `cc`, or name one with the variable CC."
        )


class NoLibrary(CannotBuild):
    """A compiler is here, but not what the load generator is built upon."""

    def __init__(self, complaint: str) -> None:
        super().__init__(
            f"{complaint}\nThe load generator could not be compiled. It needs the headers of "
            "OpenSSL and zlib (on Debian: apt install libssl-dev zlib1g-dev)."
        )


def compiler() -> str:
    name = os.environ.get("CC", "cc")
    path = shutil.which(name)
    if path is None:
        raise NoCompiler
    return path


def build(folder: Path) -> dict[str, Path]:
    """Compile every program into ``folder``; return where each of them is."""
    cc = compiler()
    built = {}
    for name, (sources, libraries) in PROGRAMS.items():
        built[name] = folder / name
        paths = [str(HERE / f"{source}.c") for source in sources]
        words = [cc, "-O2", "-Wall", "-o", str(built[name]), *paths]
        words += [f"-l{library}" for library in libraries]
        done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise NoLibrary(done.stderr)
    return built
