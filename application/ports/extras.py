"""The text of an error about a package that is not installed."""

from __future__ import annotations


def needs(what: str, *extras: str) -> str:
    """Return the text that names the ``extras`` of eyewall that ``what`` needs, and the commands
    that install them from an index and in a clone of the repository."""
    names = ",".join(extras)
    word = "extra" if len(extras) == 1 else "extras"
    return (
        f"{what} needs the {word} eyewall[{names}]: pip install 'eyewall[{names}]', "
        f"in a clone of the repository pip install '.[{names}]'"
    )
