"""docs/extending.md and the way of a message name files that are there, and the packages of the
application in the order of the import contract."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("docs/extending.md", "docs/way-of-a-message.md", "CONTRIBUTING.md")
TOPS = ("domain", "application", "adapters", "entrypoints", "tests", "clients", "docs")


def paths(page):
    found = re.findall(r"`([\w./*-]+)`", (ROOT / page).read_text())
    inside = {path for path in found if path.split("/")[0] in TOPS and "/" in path}
    return sorted(path.rstrip("/") for path in inside if "NAME" not in path)


@pytest.mark.parametrize(("page", "path"), [(page, path) for page in PAGES for path in paths(page)])
def test_each_file_is_there(page, path):
    here = path.removesuffix("...")
    found = [*ROOT.glob(here.rstrip("/")), *ROOT.glob(f"{here}.py")]

    assert found, f"{page} names {path}"


def test_the_packages_stand_in_the_order_of_the_contract():
    """Lowest first: a package imports only those above it in the table."""
    table = (ROOT / "docs/extending.md").read_text().split("## Where things are", 1)[1]
    rows = re.findall(r"^\| (`[^|]+) \|", table.split("\n## ", 1)[0], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([a-z]+)`", row)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["eyewall.application"]
    )
    height = {name: n for n, row in enumerate(reversed(layers)) for name in row.split(" : ")}

    assert set(listed) == set(height)
    assert [height[name] for name in listed] == sorted(height[name] for name in listed)
