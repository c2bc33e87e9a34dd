"""The time that a question is about."""

from __future__ import annotations

from datetime import datetime, timedelta

from common.errors import FieldError, Invalid
from services.usage_tracker.domain.judging import MAX_AHEAD

_DAY = timedelta(days=1)


def asked_range(
    start: datetime | None, end: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """Start and end: a day before the end, and whatever there is now, where they are not given.

    Raises:
        Invalid: it ends before it begins, or a year is out of range.
    """
    for name, moment in (("start", start), ("end", end)):
        if moment is not None and not 1970 < moment.year < 2200:
            raise _refused(name, "out of range")
    # Events may be dated ahead, and none later.
    last = now + MAX_AHEAD
    if end is None:
        return (last - _DAY if start is None else start), last
    begin = end - _DAY if start is None else start
    if begin >= end:
        raise _refused("start", "must be earlier than end")
    return begin, min(end, last)


def _refused(field: str, message: str) -> Invalid:
    return Invalid(
        f"{field}: {message}.", fields=[FieldError(f"/{field}", "invalid_value", message)]
    )
