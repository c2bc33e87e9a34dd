"""Stretches of time: what may be asked, and which tables answer it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from common.errors import FieldError, Invalid

Granularity = Literal["minute", "hour", "day", "month", "all"]
Period = Literal["24h", "7d", "30d"]

# The tables that hold whole units, finest first, and the coarsest one each granularity may read.
LEVELS = ("minute", "hour", "day", "month")
TABLES = {"minute": "minutes", "hour": "hours", "day": "days", "month": "months"}
COARSEST = {"minute": 0, "hour": 1, "day": 2, "month": 3, "all": 3}

MAX_BUCKETS = 50_000
PERIODS = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}
_WIDTH = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "month": timedelta(days=28),
}


def widen(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The range in whole minutes: ``start`` down, ``end`` up.

    Raises:
        Invalid: ``start`` is not before ``end``, or a year is out of range.
    """
    for name, moment in (("end", end), ("start", start)):
        if not 1970 < moment.year < 2200:
            raise Invalid(
                f"{name} must lie between 1971 and 2199.",
                fields=[FieldError(f"/{name}", "invalid_value", "out of range")],
            )
    low = start.astimezone(UTC).replace(second=0, microsecond=0)
    high = end.astimezone(UTC).replace(second=0, microsecond=0)
    if high < end:
        high += timedelta(minutes=1)
    if low >= high:
        raise Invalid(
            "start must be before end.",
            fields=[FieldError("/start", "invalid_value", "must be before end")],
        )
    return low, high


def check_buckets(start: datetime, end: datetime, granularity: Granularity) -> None:
    """Refuse a range of more than ``MAX_BUCKETS`` units.

    Raises:
        Invalid: the granularity is too fine for the range.
    """
    if granularity != "all" and (end - start) / _WIDTH[granularity] > MAX_BUCKETS:
        raise Invalid(
            f"The range has more than {MAX_BUCKETS} units of a {granularity};"
            " ask for a shorter range or a coarser granularity.",
            fields=[FieldError("/granularity", "invalid_value", "too fine for this range")],
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of time that one table answers exactly; ``end`` is out."""

    table: str
    start: datetime
    end: datetime


def pieces(start: datetime, end: datetime, granularity: Granularity) -> list[Piece]:
    """Cover [start, end) with the coarsest whole units that fit, finer ones at the edges."""
    return list(_cover(start, end, COARSEST[granularity]))


def _cover(start: datetime, end: datetime, level: int) -> Iterable[Piece]:
    if start >= end:
        return
    unit = LEVELS[level]
    if level == 0:
        yield Piece(TABLES[unit], start, end)
        return
    low, high = _ceil(start, unit), _floor(end, unit)
    if low >= high:
        yield from _cover(start, end, level - 1)
        return
    yield from _cover(start, low, level - 1)
    yield Piece(TABLES[unit], low, high)
    yield from _cover(high, end, level - 1)


def _floor(moment: datetime, unit: str) -> datetime:
    if unit == "month":
        return moment.replace(day=1, hour=0, minute=0)
    if unit == "day":
        return moment.replace(hour=0, minute=0)
    return moment.replace(minute=0)


def _ceil(moment: datetime, unit: str) -> datetime:
    low = _floor(moment, unit)
    if low == moment:
        return moment
    if unit == "month":
        return (low + timedelta(days=32)).replace(day=1)
    return low + _WIDTH[unit]
