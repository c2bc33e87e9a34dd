"""Pages by key: a token names the last row seen, never an offset."""

from __future__ import annotations

import base64
import binascii
import json

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
        if isinstance(key, list) and len(key) == parts and all(isinstance(k, str) for k in key):
            return tuple(key)
    except (ValueError, binascii.Error, UnicodeDecodeError):
        pass
    raise Invalid(
        "page_token is not one of ours; take next_page_token of the page before.",
        fields=[FieldError("/page_token", "invalid_value", "not a page token")],
    )
