"""The reason of a refusal for the log, without the client's credentials.

The text may come from an application's own authenticator. The result is short, is one line,
and contains no secret and no part of one.
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
"""Fewest characters of a secret. A shorter value occurs by accident in other texts, and masking
it there would disclose it."""


PIECE: Final = 12
"""Fewest common characters that count as a quote of a part of a secret."""


_READ: Final = 5 * LONGEST
"""Characters of a text that are examined: enough for a mask to shorten it, and bounded."""


def hint_of(error: BaseException | None, secrets: Iterable[str]) -> str | None:
    """Return the text of a refusal, with each whole secret masked.

    None if the error has no text of its own, or if it quotes a part of one of the ``secrets``.
    """
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
    """Return the ``values`` that are long enough for a secret, also in the form that ``repr``
    writes, the longest first."""
    long = {value for value in values if len(value) >= SHORTEST}
    return sorted(long | {repr(value)[1:-1] for value in long}, key=len, reverse=True)


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` with the ``secrets`` masked; ``secrets`` has the longest first."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def trace_without(error: BaseException, values: Iterable[str]) -> str | None:
    """Return the traceback of ``error`` with the secrets of ``values`` masked; None if neither
    the traceback nor the error's text contains one."""
    text = "".join(traceback.format_exception(error))
    seen = f"{text}{shown(error)}"
    found = [secret for secret in secrets_of(values) if secret in seen]
    return masked(text, found) if found else None


def _quotes(text: str, secrets: Collection[str]) -> bool:
    pieces = (text[at : at + PIECE] for at in range(len(text) - PIECE + 1))
    return any(piece in secret for piece in pieces for secret in secrets)
