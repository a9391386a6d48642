"""Which modules of ours the targets come to; imports nothing of ours, as ``run`` asks."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("domain", "application", "adapters", "entrypoints")

REACHED = (
    "eyewall.adapters.codec",
    "eyewall.adapters.web.protocol.deflate",
    "eyewall.adapters.web.protocol.parser",
    "eyewall.adapters.web.protocol.frames",
    "eyewall.application.ports.message",
    "eyewall.application.cluster.packet",
    "eyewall.domain",
)
"""Modules and packages. To prepare all the others for atheris, too, takes it seconds."""


def is_reached(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in REACHED)


def others() -> list[str]:
    """Return the names of our modules that no target comes to."""
    paths = [path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    names = {".".join(("eyewall", *path.with_suffix("").parts)) for path in paths}
    names = {name.removesuffix(".__init__") for name in names}
    names = {name.replace("eyewall.entrypoints", "eyewall", 1) for name in names}
    return sorted(name for name in names if not is_reached(name))
