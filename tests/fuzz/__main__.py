"""``python -m tests.fuzz [TARGET ...] [--seconds N]``: look for bytes that break something.

The corpus is kept: what reached something new is added to tests/fuzz/corpus, the least
that reaches it. Bytes that broke something go to out/fuzz, where the message says.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz.corpus import CORPUS, ROOT, SEED, TARGETS, write_seeds

OUT = ROOT / "out" / "fuzz"
MAX_LENGTH = 4096
MAX_KEPT = 90_000
"""Bytes of corpus for each target: it is in the repository, and replayed by every test."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=300, help="for each target")
    parser.add_argument("--forget", action="store_true", help="leave the corpus as it is")
    options = parser.parse_args()
    write_seeds()
    results = [
        fuzz(target, options.seconds) or (not options.forget and keep(target))
        for target in options.target or TARGETS
    ]
    return int(any(results))


def fuzz(target: str, seconds: int) -> int:
    """Run one target; what it finds goes to ``OUT``."""
    found = OUT / target / "found"
    found.mkdir(parents=True, exist_ok=True)
    print(f"--- {target}: {seconds} s", flush=True)
    return atheris(
        target, f"-max_total_time={seconds}", "-print_final_stats=1", found, CORPUS / target
    )


def keep(target: str) -> int:
    """Replace what was found before by the least that reaches all that is known."""
    kept, found = CORPUS / target, OUT / target / "found"
    merged = OUT / target / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    for seed in kept.glob(f"{SEED}*"):
        shutil.copy(seed, merged)
    code = atheris(target, "-merge=1", merged, kept, found)
    if code:
        return code
    for old in kept.iterdir():
        if not old.name.startswith(SEED):
            old.unlink()
    new = [path for path in merged.iterdir() if not path.name.startswith(SEED)]
    size = sum(path.stat().st_size for path in kept.iterdir())
    for path in sorted(new, key=lambda path: path.stat().st_size):
        size += path.stat().st_size
        if size > MAX_KEPT:
            break
        shutil.copy(path, kept / path.name)
    files = list(kept.iterdir())
    print(f"--- {target}: {len(files)} files kept, {sum(f.stat().st_size for f in files)} bytes")
    return 0


def atheris(target: str, *arguments: str | Path) -> int:
    again = OUT / target / "again"
    command = shlex.join((sys.executable, "-m", "tests.fuzz.run", target))
    again.write_text(f'#!/bin/sh\nexec {command} "$0" "$@"\n')
    again.chmod(0o755)
    return subprocess.run(
        [
            *(again, f"-artifact_prefix={OUT / target}/", f"-max_len={MAX_LENGTH}"),
            *("-timeout=20", "-rss_limit_mb=1024", *arguments),
        ],
        cwd=ROOT,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
