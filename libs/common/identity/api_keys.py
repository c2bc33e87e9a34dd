"""API keys as texts: whoever is shown one sees whether it may be a key at all."""

from __future__ import annotations

import secrets
import string
import zlib
from typing import Literal

KeyKind = Literal["user", "project"]

_MARKS: dict[KeyKind, str] = {"user": "mwu_", "project": "mwp_"}
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
# 190 random bits.
_RANDOM_LENGTH = 32
# 62 ** 6 > 2 ** 32.
_CHECKSUM_LENGTH = 6


def new_secret(kind: KeyKind) -> str:
    """A new key: a mark of its kind, random letters and digits, and their checksum."""
    body = _MARKS[kind] + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether it may be a key: false for one that was mistyped, without looking anything up."""
    if not secret.isascii() or len(secret) != 4 + _RANDOM_LENGTH + _CHECKSUM_LENGTH:
        return False
    body, checksum = secret[:-_CHECKSUM_LENGTH], secret[-_CHECKSUM_LENGTH:]
    return body[:4] in _MARKS.values() and checksum == _checksum(body)


def _checksum(body: str) -> str:
    rest, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
