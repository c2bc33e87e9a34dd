"""If-Match (RFC 9110, section 13.1.1) on resources whose ETag is their version."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from common.errors import FieldError, Invalid

# No row has it: a tag that cannot match is sent on as this, so that 404 and 403 come before 412.
NO_VERSION = 0
_MOST_TAGS = 8
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


def etag(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def wanted_versions(headers: Headers) -> tuple[int, ...] | None:
    """The versions that a change may be made to; None where any will do.

    A weak tag never matches here, nor does one that is not ours.

    Raises:
        Invalid: the field is not a list of quoted tags, or a long one.
    """
    fields = headers.getlist("if-match")
    if not fields:
        return None
    parts = [part.strip() for part in ",".join(fields).split(",")]
    if parts == ["*"]:
        return None
    tags = [_TAG.fullmatch(part) for part in parts if part]
    if not tags or len(tags) > _MOST_TAGS or None in tags:
        reason = f'must be *, or 1 to {_MOST_TAGS} quoted tags such as "3"'
        raise Invalid(
            f"If-Match {reason}.", fields=[FieldError("/If-Match", "invalid_value", reason)]
        )
    versions = {
        int(tag[2])
        for tag in tags
        if tag is not None and tag[1] is None and _VERSION.fullmatch(tag[2])
    }
    return tuple(sorted(versions, reverse=True)) or (NO_VERSION,)
