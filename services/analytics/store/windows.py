"""Windows of usage: appended, moved on, asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from common.database import Scope
from common.database.copying import CopyRows, copy_rows
from common.threads import off_loop
from services.analytics.domain import (
    DIMENSIONS,
    SUMS,
    Fresh,
    SeriesKey,
    Windows,
    fresh,
    series_id,
)
from services.analytics.store.asking import PLANNER, Query, Result, Row, grouped, row_of, select
from services.analytics.store.rollup import GATHER, ROLL_UP, SUMMED

if TYPE_CHECKING:
    import asyncpg
    from numpy.typing import NDArray

    from common.database import Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DELTA_COLUMNS = (
    *("part", "seq", "start", "org_id", "series_id", *SUMS, "source"),
    *("latency_bins", "latency_counts"),
)
_MINUTE_US = 60_000_000
_MOST_SERIES = 100_000
# So many take milliseconds.
_MANY_DELTAS = 500


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append has added: rows, and series that were not known to be stored."""

    rows: int
    series: Mapping[SeriesKey, bytes]


class RollupStore:
    """Windows of usage, appended and rolled up to minutes, hours, days and months."""

    def __init__(self, db: Database, step: int = 20_000) -> None:
        """Keeps windows in the service's database.

        Args:
            db: the service's.
            step: rows that a roll-up moves at once.
        """
        self._db = db
        self._step = step
        # Stored for good: those of an organization go when nothing of it comes any more.
        self._series: dict[SeriesKey, bytes] = {}

    async def append(
        self, connection: asyncpg.Connection, part: int, records: Sequence[Windows]
    ) -> Appended:
        """Append what is new in the records, in the caller's transaction.

        The caller tells ``remember`` what came of it, once that has committed.
        """
        known = await connection.fetch(
            """SELECT source, last_seq,
                   (SELECT ROW(generation, count) FROM source_counts WHERE part = $1) AS sources
               FROM sources WHERE part = $1""",
            part,
        )
        last: dict[int, int] = {row["source"]: row["last_seq"] for row in known}
        told = max((r.sources for r in records if r.sources is not None), default=None)
        if told is not None and (not known or known[0]["sources"] != told):
            await self._count_sources(connection, part, *told)
        watermarks: dict[int, int] = {}
        found: list[Fresh] = []
        for record in records:
            if record.source is not None:
                new = fresh(record, last.get(record.source, 0))
                if new is not None:
                    found.append(new)
                    last[record.source] = new.last
            for source, mark in record.watermarks.items():
                watermarks[source] = max(mark, watermarks.get(source, mark))
        series = await self._insert(connection, part, found) if found else {}
        await connection.executemany(
            """INSERT INTO sources AS s (part, source, last_seq, watermark) VALUES ($1, $2, $3, $4)
               ON CONFLICT (part, source) DO UPDATE
               SET last_seq = excluded.last_seq,
                   watermark = greatest(s.watermark, excluded.watermark)""",
            [
                (part, s, last.get(s, 0), _moment(watermarks.get(s)))
                for s in sorted(last.keys() | watermarks.keys())
            ],
        )
        return Appended(sum(map(len, found)), series)

    async def _count_sources(
        self, connection: asyncpg.Connection, part: int, generation: int, count: int
    ) -> None:
        """Keep how many sources there are; one that stood still may tell of an earlier number."""
        await connection.execute(
            """INSERT INTO source_counts AS s (part, generation, count) VALUES ($1, $2, $3)
               ON CONFLICT (part) DO UPDATE
               SET generation = excluded.generation, count = excluded.count
               WHERE s.generation < excluded.generation""",
            part,
            generation,
            count,
        )

    async def _insert(
        self, connection: asyncpg.Connection, part: int, found: Sequence[Fresh]
    ) -> dict[SeriesKey, bytes]:
        long = sum(map(len, found)) > _MANY_DELTAS
        ids, new = await off_loop(long, self._identified, found)
        await connection.executemany(
            f"""INSERT INTO series (part, org_id, series_id, {", ".join(DIMENSIONS)})
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                ON CONFLICT DO NOTHING""",
            [
                (part, _uuid(key[0]), UUID(bytes=series), *map(_uuid, key[1:]))
                for key, series in new.items()
            ],
        )
        rows = await off_loop(long, _delta_rows, part, found, ids)
        await copy_rows(connection, "deltas", _DELTA_COLUMNS, rows)
        return new

    def _identified(self, found: Sequence[Fresh]) -> tuple[list[bytes], dict[SeriesKey, bytes]]:
        """The series of each delta, and those that are not known to be stored."""
        keys = [key for one in found for key in one.series()]
        known = list(map(self._series.get, keys))
        new = {
            key: series_id(key) for key, series in zip(keys, known, strict=True) if series is None
        }
        return [series or new[key] for key, series in zip(keys, known, strict=True)], new

    def remember(self, appended: Appended) -> None:
        """Note which series are stored, so that they are not stored with every batch."""
        if len(self._series) + len(appended.series) > _MOST_SERIES:
            self._series.clear()
        self._series |= appended.series

    async def gather(self, part: int) -> int:
        """Move what has arrived to the windows of the last minutes; returns the rows moved.

        A step is one transaction of bounded length, however much waits.
        """
        return await self._move(GATHER, part)

    async def roll_up(self, part: int, before: datetime) -> int:
        """Move the windows before a time on into minutes, hours, days and months, as ``gather``."""
        return await self._move(ROLL_UP, part, before)

    async def _move(self, sql: str, part: int, *given: object) -> int:
        total = 0
        while True:
            async with self._db.change(Scope(), call=None) as change:
                moved: int = await change.connection.fetchval(sql, part, self._step, *given)
            total += moved
            if moved < self._step:
                return total

    async def query(self, query: Query) -> Result:
        """Rows, totals and freshness, all from one snapshot."""
        sql, arguments = select(query)
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(PLANNER)
            found = await connection.fetch(sql, *arguments)
        rows = [row_of(r) for r in found if r["key"] is not None]
        totals = next(r for r in found if r["key"] is None)
        more = len(rows) > query.limit
        return Result(rows[: query.limit], row_of(totals), totals["fresh_until"], more)

    async def top(self, query: Query, dimension: str, limit: int) -> list[Row]:
        """The costliest values of one dimension, then the busiest; without sketches."""
        arguments: list[object] = [query.part, query.org_id]
        groups = grouped(query, arguments)
        arguments.append(limit)
        sql = f"""WITH {groups}
            SELECT {dimension}::text AS key, NULL::timestamptz AS bucket, {SUMMED},
                   '{{}}'::bigint[] AS bins
            FROM g WHERE {dimension} IS NOT NULL GROUP BY {dimension}
            ORDER BY sum(cost_nano) DESC, sum(events) DESC, 1 LIMIT ${len(arguments)}"""
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(PLANNER)
            return [row_of(r) for r in await connection.fetch(sql, *arguments)]


def _delta_rows(part: int, found: Sequence[Fresh], series: Sequence[bytes]) -> bytes:
    def numbers(name: str) -> NDArray[np.int64]:
        return np.array([value for one in found for value in one.values(name)], np.int64)

    def ids(values: Sequence[bytes]) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(values), np.uint8).reshape(-1, 16)

    rows = CopyRows(len(series), len(_DELTA_COLUMNS))
    rows.int2(part).int8(numbers("seq")).timestamp(numbers("minute") * _MINUTE_US)
    rows.raw(ids([org for one in found for org in one.values("org_id")])).raw(ids(series))
    for name in SUMS:
        rows.int8(numbers(name))
    sources = [one.source.to_bytes(2) for one in found]
    rows.coded(sources, np.repeat(np.arange(len(found)), [len(one) for one in found]))
    bins = [some for one in found for some in one.values("latency_bins")]
    counts = [some for one in found for some in one.values("latency_counts")]
    ends = np.cumsum([len(some) for some in bins])
    rows.int4_arrays(np.array(list(chain.from_iterable(bins)), np.int64), ends)
    return rows.int8_arrays(np.array(list(chain.from_iterable(counts)), np.int64), ends).finish()


def _uuid(value: bytes | str | None) -> UUID | str | None:
    return UUID(bytes=value) if isinstance(value, bytes) else value


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)
