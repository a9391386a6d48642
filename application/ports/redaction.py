"""The reason of a refusal, for the log, without the credentials that the client has shown.

The text may come from an application's own authenticator. It is cut to a length, stands in one
line, and contains no secret and no part of one.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable
from typing import Final

from eyewall.application.ports.logging import shown
from eyewall.domain.errors import EyewallError, as_text, code_of
from eyewall.domain.identity import is_printable

MASK: Final = "***"


LONGEST: Final = 200
"""Characters of a hint that are shown."""


SHORTEST: Final = 6
"""Fewest characters of a value that is taken for a secret. A shorter one occurs by accident in
other texts, and masking it there would disclose it."""


PIECE: Final = 12
"""Fewest characters in common by which a text is taken to quote a part of a secret."""


_READ: Final = 5 * LONGEST
"""Characters of a text that are looked at."""


def hint_of(error: BaseException | None, secrets: Iterable[str]) -> str | None:
    """Return the text of a refusal; None if it has none of its own, or quotes a part of one of
    the ``secrets``. Where it quotes a whole one, that is masked."""
    if not isinstance(error, EyewallError):
        return None
    text = as_text(error)[:_READ]
    if not text or text == code_of(error).replace("_", " "):
        return None
    known = secrets_of(secrets)
    text = masked(text, known)
    if _quotes(text, [secret for secret in known if len(secret) >= PIECE]):
        return None
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(c if is_printable(c) else f"\\x{ord(c):02x}" for c in text)


def secrets_of(values: Iterable[str]) -> list[str]:
    """Return what of ``values`` may be a secret, also as ``repr`` writes it; the longest first."""
    long = {value for value in values if len(value) >= SHORTEST}
    return sorted(long | {repr(value)[1:-1] for value in long}, key=len, reverse=True)


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` without the ``secrets``, which come the longest first."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def trace_without(error: BaseException, values: Iterable[str]) -> str | None:
    """Return the traceback of ``error`` with what may be secret masked; None if it, and the
    error's own text, show nothing of it."""
    text = "".join(traceback.format_exception(error))
    seen = f"{text}{shown(error)}"
    found = [secret for secret in secrets_of(values) if secret in seen]
    return masked(text, found) if found else None


def _quotes(text: str, secrets: Collection[str]) -> bool:
    pieces = (text[at : at + PIECE] for at in range(len(text) - PIECE + 1))
    return any(piece in secret for piece in pieces for secret in secrets)
