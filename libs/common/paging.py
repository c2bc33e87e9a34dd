"""Pages by key: a token names the last row seen, never an offset."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any

from common.errors import FieldError, Invalid

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500


def page_size(asked: int) -> int:
    """Rows on a page: 50 where none is asked for; validation has refused more than 500."""
    return min(asked, MAX_PAGE_SIZE) if asked > 0 else DEFAULT_PAGE_SIZE


def encode_token(*key: str) -> str:
    """A page token for the sort key of the last row seen."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_token(token: str, parts: int) -> tuple[str, ...] | None:
    """The sort key in a page token; None for the first page (an empty token).

    Raises:
        Invalid: the token is not one that ``encode_token`` made with ``parts`` parts.
    """
    if not token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if (
            isinstance(key, list)
            and len(key) == parts
            and all(isinstance(k, str) and "\x00" not in k for k in key)
        ):
            return tuple(key)
    except (ValueError, binascii.Error, UnicodeDecodeError):
        pass
    raise _refused()


def decode_key(token: str, *readers: Callable[[str], Any]) -> tuple[Any, ...] | None:
    """The sort key in a page token, each part read by its reader (``UUID``, say).

    Raises:
        Invalid: the token is not one of ours, or a reader raised ValueError.
    """
    key = decode_token(token, len(readers))
    try:
        return key and tuple(read(part) for read, part in zip(readers, key, strict=True))
    except ValueError as error:
        raise _refused() from error


def _refused() -> Invalid:
    return Invalid(
        "page_token is not one of ours; take next_page_token of the page before.",
        fields=[FieldError("/page_token", "invalid_value", "not a page token")],
    )
