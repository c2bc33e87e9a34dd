"""The time that a question is about."""

from __future__ import annotations

from datetime import datetime, timedelta

from common.errors import FieldError, Invalid
from services.usage_tracker.domain.judging import MAX_AHEAD

# The year 9999, in microseconds since 1970: the last that a time can have.
LATEST_US = 253_370_764_800_000_000
_DAY = timedelta(days=1)


class RangeTooLong(Invalid):
    """What is asked for would be looked for in too much."""

    code = "range_too_long"

    def __init__(self) -> None:
        super().__init__(
            "To look through this time takes too long; narrow start and end.",
            fields=[FieldError("/start", "range_too_long", "too much lies in the range")],
        )


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


def place_us(text: str) -> int:
    """Microseconds since 1970, as a page token has them.

    Raises:
        ValueError: it is no number, or no time that an event can have.
    """
    number = int(text)
    if not 0 <= number < LATEST_US:
        raise ValueError(text)
    return number


def _refused(field: str, message: str) -> Invalid:
    return Invalid(
        f"{field}: {message}.", fields=[FieldError(f"/{field}", "invalid_value", message)]
    )
