"""What a password may be (SP 800-63B: long, not leaked, no rules of composition)."""

from __future__ import annotations

import unicodedata

from common.errors import FieldError, Invalid

MIN_LENGTH = 15
MAX_LENGTH = 256


def normalize_password(password: str) -> str:
    """The same characters however the keyboard composed them (NFKC)."""
    return unicodedata.normalize("NFKC", password)


def check_password(password: str, *, email: str, display_name: str) -> str:
    """The password in its normal form.

    Raises:
        Invalid: it is too short or too long in that form, or names its user.
    """
    normal = normalize_password(password)
    if len(normal) < MIN_LENGTH:
        raise refused("too_short", f"must have at least {MIN_LENGTH} characters")
    if len(normal) > MAX_LENGTH:
        raise refused("too_long", f"must have at most {MAX_LENGTH} characters")
    if _folded(normal) in {_folded(email), _folded(display_name)}:
        raise refused("names_user", "must not be the address or the display name")
    return normal


def spellings(password: str) -> set[str]:
    """Under which spellings a list of leaked passwords is searched for it."""
    return {password, password.strip(), password.lower()}


def leaked() -> Invalid:
    """The password is on a list of leaked ones."""
    return refused("leaked", "is on a list of leaked passwords; choose another one")


def refused(code: str, message: str) -> Invalid:
    return Invalid(f"The password {message}.", fields=[FieldError("/password", code, message)])


def _folded(text: str) -> str:
    return normalize_password(text).strip().casefold()
