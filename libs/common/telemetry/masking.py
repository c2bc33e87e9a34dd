"""Secrets, taken out of what is about to be logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_SECRET_NAME = re.compile(
    r"(^|[_.\-])(authorization|password|passwd|passphrase|tokens?|secrets?|keys?|cookies?"
    r"|credentials?|dsn)$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Our own keys and refresh tokens (mwu_, mwp_, mwr_ …), JSON web tokens, what follows
# "Bearer" or "Basic", private keys in PEM, and passwords in URLs.
_SECRET_VALUE = re.compile(
    r"(?P<ours>\bmw[a-z]{1,2}_[A-Za-z0-9_-]{8,})"
    r"|(?P<jwt>\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?)"
    r"|(?P<scheme>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"
    r"|(?P<pem>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?P<url>[a-z][a-z0-9+.-]{0,30}://[^\s:/@]*:)[^\s/@]+(?=@)",
    re.IGNORECASE | re.DOTALL,
)
_DEPTH = 8


def masked(value: Any, depth: int = 0) -> Any:
    """The value with every secret in it replaced; containers are copied, never changed."""
    if isinstance(value, str):
        return _SECRET_VALUE.sub(_replacement, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= _DEPTH:
        return MASK
    if isinstance(value, Mapping):
        return {masked(str(k)): masked_field(str(k), v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item, depth + 1) for item in value]
    return masked(str(value), depth + 1)


def masked_field(name: str, value: Any, depth: int = 0) -> Any:
    """A named value: gone where the name says that it is a secret; numbers are none."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if _SECRET_NAME.search(_CAMEL.sub("_", name)):
        return MASK
    return masked(value, depth)


def _replacement(found: re.Match[str]) -> str:
    kind = found.lastgroup
    if kind == "ours":
        return found[0][: found[0].index("_") + 1] + MASK
    if kind in ("scheme", "url", "pem"):
        return found[kind] + MASK
    return MASK
