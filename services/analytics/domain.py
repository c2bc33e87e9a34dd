"""Windows of usage: dimensions, measures, time ranges and latency sketches."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import add
from typing import Any, Literal
from uuid import UUID

import msgspec
import xxhash

from common.errors import FieldError, Invalid

Granularity = Literal["minute", "hour", "day", "month", "all"]
Period = Literal["24h", "7d", "30d"]

DIMENSIONS = (
    "model",
    "provider",
    "project_id",
    "team_id",
    "user_id",
    "api_key_id",
    "event_type",
    "status",
    "mcp_server",
    "tool",
)
# The measures that add up; money in nano-dollars, latency in microseconds.
SUMS = (
    "events",
    "errors",
    "unpriced_events",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "input_nano",
    "output_nano",
    "cache_read_nano",
    "cache_write_nano",
    "cost_nano",
    "latency_count",
    "latency_sum_us",
)

# Bin b of a sketch holds latencies in (GAMMA**(b-1), GAMMA**b] µs: within 1 % of its value.
GAMMA = 1.02

# The tables that hold whole units, finest first, and the coarsest one each granularity may read.
LEVELS = ("minute", "hour", "day", "month")
TABLES = {"minute": "minutes", "hour": "hours", "day": "days", "month": "months"}
COARSEST = {"minute": 0, "hour": 1, "day": 2, "month": 3, "all": 3}

MAX_BUCKETS = 50_000
# The largest integer that every reader of JSON keeps exactly.
MAX_SUM = 2**53
PERIODS = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}
_WIDTH = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "month": timedelta(days=28),
}


class SumTooLarge(Invalid):
    """A sum of the answer is larger than a JSON number can hold exactly."""

    code = "sum_too_large"


class Columns(msgspec.Struct, frozen=True):
    """Deltas as columns of one length; the shapes are those of the record's contract."""

    seq: list[int]
    org_id: list[bytes]
    minute: list[int]
    model: list[str | None]
    provider: list[str | None]
    project_id: list[bytes | None]
    team_id: list[bytes | None]
    user_id: list[bytes | None]
    api_key_id: list[bytes | None]
    event_type: list[str | None]
    status: list[str | None]
    mcp_server: list[str | None]
    tool: list[str | None]
    events: list[int]
    errors: list[int]
    unpriced_events: list[int]
    input_tokens: list[int]
    output_tokens: list[int]
    cache_read_tokens: list[int]
    cache_write_5m_tokens: list[int]
    cache_write_1h_tokens: list[int]
    input_nano: list[int]
    output_nano: list[int]
    cache_read_nano: list[int]
    cache_write_nano: list[int]
    cost_nano: list[int]
    latency_count: list[int]
    latency_sum_us: list[int]
    latency_bins: list[list[int]]
    latency_counts: list[list[int]]
    reason: list[str | None]

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__struct_fields__}
        if len(lengths) != 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")

    @property
    def cache_write_tokens(self) -> list[int]:
        """Both kinds of cache writes, which are one measure here."""
        return list(map(add, self.cache_write_5m_tokens, self.cache_write_1h_tokens))


class Windows(msgspec.Struct, frozen=True):
    """The data of one record on ``usage.windows``; watermarks are microseconds since 1970.

    ``sources`` says how many sources there are, behind a number that grows when that changes.
    """

    watermarks: dict[int, int]
    source: int | None = None
    first: int | None = None
    last: int | None = None
    columns: Columns | None = None
    sources: tuple[int, int] | None = None


# One combination of dimensions: the organization, then the values in the order of ``DIMENSIONS``.
SeriesKey = tuple[bytes | str | None, ...]


@dataclass(frozen=True, slots=True)
class Fresh:
    """Deltas of one source that are not applied yet, from ``begin`` of a record's columns on."""

    source: int
    columns: Columns
    begin: int

    @property
    def last(self) -> int:
        return self.columns.seq[-1]

    def __len__(self) -> int:
        return len(self.columns.seq) - self.begin

    def values(self, name: str) -> list[Any]:
        """What the deltas hold of a measure or dimension."""
        found: list[Any] = getattr(self.columns, name)
        return found[self.begin :]

    def series(self) -> Iterator[SeriesKey]:
        """The series of each delta."""
        return zip(*(self.values(name) for name in ("org_id", *DIMENSIONS)), strict=True)


def fresh(windows: Windows, after: int) -> Fresh | None:
    """The deltas of a record whose number is beyond ``after``; None where there is none."""
    columns, source = windows.columns, windows.source
    if columns is None or source is None or not columns.seq or columns.seq[-1] <= after:
        return None
    return Fresh(source, columns, bisect_right(columns.seq, after))


def series_id(key: SeriesKey) -> bytes:
    """The 16 bytes that name a series."""
    return xxhash.xxh3_128_digest(msgspec.msgpack.encode(key))


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


def quantile_ms(bins: Sequence[tuple[int, int]], q: float) -> float | None:
    """The q-quantile in milliseconds of a sketch of (bin, count), nearest rank, within 1 %."""
    total = sum(count for _, count in bins)
    if total <= 0:
        return None
    rank = max(1, math.ceil(q * total))
    seen = 0
    for index, count in sorted(bins):
        seen += count
        if seen >= rank:
            return round(2 * GAMMA**index / (GAMMA + 1) / 1000, 6) if index > 0 else 0.001
    return None


def exact(name: str, total: int) -> int:
    """The sum, where JSON can hold it.

    Raises:
        SumTooLarge: it is beyond 2^53.
    """
    if abs(total) > MAX_SUM:
        raise SumTooLarge(
            f"The sum of {name} is beyond 2^53; ask for a shorter range or filter.",
            fields=[FieldError("/start", "sum_too_large", f"too much {name} in the range")],
        )
    return total


def usd(nano: int) -> str:
    """Nano-dollars as a decimal string in USD with nine decimals."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), 1_000_000_000)
    return f"{sign}{whole}.{part:09d}"


def partition_of(org_id: UUID, partitions: int) -> int:
    """The partition of ``usage.windows`` that holds the organization."""
    return xxhash.xxh3_64_intdigest(org_id.bytes) % partitions
