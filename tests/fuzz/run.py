"""``python -m tests.fuzz.run TARGET AGAIN [libFuzzer's arguments]``: one target under atheris.

AGAIN is the program by which libFuzzer starts itself anew, which it does to merge.
"""

from __future__ import annotations

import importlib
import sys

import atheris

from tests.fuzz.reached import others


def main() -> None:
    _, name, *arguments = sys.argv
    # Nothing of ours may have been imported before; the target's own paths are no coverage.
    with atheris.instrument_imports(include=["eyewall"], exclude=others()):
        target = importlib.import_module(f"tests.fuzz.{name}_target")
    atheris.Setup(arguments, target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
