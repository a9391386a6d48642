"""Compiles the floor and the load generator, each time anew, into a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = {"floor": ("floor.c",), "loadgen": ("loadgen.c", "client.c", "meter.c")}


class NoCompiler(Exception):
    """There is nothing to compile the floor and the load generator with."""

    def __init__(self) -> None:
        super().__init__(
            "no C compiler: the floor and the load generator are written in C. "
            "Install one that answers to `cc`, or name one with the variable CC."
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
    for name, sources in PROGRAMS.items():
        built[name] = folder / name
        paths = [str(HERE / source) for source in sources]
        subprocess.run([cc, "-O2", "-Wall", "-o", str(built[name]), *paths], check=True)
    return built
