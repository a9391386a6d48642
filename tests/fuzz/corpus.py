"""Where the corpus is: for each target a folder of bytes, each replayed by every test.

Files that begin with ``seed-`` are written from ``seeds``; the others were found.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.seeds import SEEDS

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
SEED = "seed-"

TARGETS = {name: f"tests.fuzz.{name}_target" for name in SEEDS}


def check_of(target: str) -> Callable[[bytes], None]:
    """Return what takes any bytes, and raises only if something is wrong with us."""
    check: Callable[[bytes], None] = importlib.import_module(TARGETS[target]).check
    return check


def files(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


def write_seeds() -> None:
    for target, seeds in SEEDS.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            path = CORPUS / target / f"{SEED}{name}"
            # Kept as it was: zlib does not compress alike everywhere.
            if not path.exists():
                path.write_bytes(data)
