"""Names that people give to things: trimmed, one line, never blank."""

from __future__ import annotations

import unicodedata

from common.errors import FieldError, Invalid

# Control, private-use and unassigned characters, lone surrogates, line and paragraph separators.
_REFUSED = frozenset({"Cc", "Co", "Cn", "Cs", "Zl", "Zp"})


def clean_name(name: str, pointer: str = "/name") -> str:
    """The name without blanks around it, in Unicode's composed form (NFC).

    Raises:
        Invalid: nothing is left of it, or a character in it cannot be shown on one line.
    """
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not cleaned or all(unicodedata.category(c) == "Cf" for c in cleaned):
        raise _refused(pointer, "blank", "must not be blank")
    if any(unicodedata.category(c) in _REFUSED for c in cleaned):
        raise _refused(pointer, "invalid_value", "must hold only printable characters")
    return cleaned


def _refused(pointer: str, code: str, message: str) -> Invalid:
    return Invalid(f"{pointer[1:]} {message}.", fields=[FieldError(pointer, code, message)])
