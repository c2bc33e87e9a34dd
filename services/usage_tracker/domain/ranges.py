"""The time that a question is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from common.errors import FieldError, Invalid
from services.usage_tracker.domain.judging import MAX_AHEAD

_DAY = timedelta(days=1)
# No event is so old, and some time before it can be reckoned with.
_FIRST = datetime(1971, 1, 1, tzinfo=UTC)


def asked_range(
    start: datetime | None, end: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """Start and end: a day before the end, and whatever there is now, where they are not given.

    Raises:
        Invalid: it ends before it begins.
    """
    # Events may be dated ahead, and none later.
    last = now + MAX_AHEAD
    stop = last if end is None else end
    begin = max(stop, _FIRST + _DAY) - _DAY if start is None else start
    if begin >= stop:
        raise Invalid(
            "start must be earlier than end.",
            fields=[FieldError("/start", "invalid_value", "must be earlier than end")],
        )
    return max(begin, _FIRST), max(min(stop, last), _FIRST)
