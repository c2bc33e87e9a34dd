"""All SQL of analytics. Every query is bound to one organization and so to one ``part``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from common.database import Scope
from services.analytics.domain import (
    DIMENSIONS,
    SUMS,
    TABLES,
    Delta,
    Granularity,
    Piece,
    Windows,
    deltas,
)

if TYPE_CHECKING:
    import asyncpg

    from common.database import Change, Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = ", ".join(SUMS)
_ROW = f"start, series_id, {_COLUMNS}, latency_bins, latency_counts"
_SUMMED = ", ".join(f"sum({m})::numeric AS {m}" for m in SUMS)

# The statistics never know the rows of the last minutes: without this the planner joins them with
# their series by a nested loop, which took 30 times as long for 3,000 rows.
_PLANNER = "SET LOCAL enable_nestloop = off; SET LOCAL jit = off"

# Adds the moved deltas to one table; the sketches are merged bin by bin.
_MERGED_BINS = """
    (SELECT coalesce(array_agg(bin ORDER BY bin), '{}'),
            coalesce(array_agg(n ORDER BY bin), '{}')
     FROM (SELECT bin, sum(count)::bigint AS n FROM (
         SELECT * FROM unnest(kept.latency_bins, kept.latency_counts) AS a(bin, count)
         UNION ALL
         SELECT * FROM unnest(excluded.latency_bins, excluded.latency_counts) AS b(bin, count)
     ) AS both_sides GROUP BY bin) AS merged)"""


def _level(unit: str) -> str:
    added = ", ".join(f"{m} = kept.{m} + excluded.{m}" for m in SUMS)
    return f"""
{TABLES[unit]}_sums AS (
    SELECT part, org_id, date_trunc('{unit}', start, 'UTC') AS start, series_id, {_SUMMED}
    FROM moved GROUP BY 1, 2, 3, 4
), {TABLES[unit]}_bins AS (
    SELECT org_id, start, series_id, array_agg(bin ORDER BY bin) AS latency_bins,
           array_agg(count ORDER BY bin) AS latency_counts
    FROM (SELECT org_id, date_trunc('{unit}', start, 'UTC') AS start, series_id, bin,
                 sum(count)::bigint AS count
          FROM moved CROSS JOIN LATERAL unnest(latency_bins, latency_counts) AS u(bin, count)
          GROUP BY 1, 2, 3, 4) AS counted
    GROUP BY 1, 2, 3
), {TABLES[unit]}_written AS (
    INSERT INTO {TABLES[unit]} AS kept (part, org_id, {_ROW})
    SELECT s.part, s.org_id, s.start, s.series_id, {", ".join("s." + m for m in SUMS)},
           coalesce(b.latency_bins, '{{}}'), coalesce(b.latency_counts, '{{}}')
    FROM {TABLES[unit]}_sums AS s
    LEFT JOIN {TABLES[unit]}_bins AS b USING (org_id, start, series_id)
    ON CONFLICT (part, org_id, start, series_id) DO UPDATE SET {added},
        (latency_bins, latency_counts) = {_MERGED_BINS}
)"""


_ROLL_UP = (
    "WITH moved AS (DELETE FROM deltas WHERE part = $1"
    " AND ctid = ANY (ARRAY(SELECT ctid FROM deltas WHERE part = $1 LIMIT $2)) RETURNING *),"
    + ",".join(_level(unit) for unit in TABLES)
    + " SELECT count(*) FROM moved"
)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of one organization's windows; ``filters`` by dimension."""

    part: int
    org_id: UUID
    granularity: Granularity
    pieces: Sequence[Piece]
    start: datetime
    end: datetime
    group_by: Sequence[str] = ()
    filters: Mapping[str, str | UUID] | None = None
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One group: ``sums`` by measure, ``bins`` as (bin, count); ``key`` orders and pages."""

    key: str
    start: datetime | None
    dimensions: Mapping[str, str | None]
    sums: Mapping[str, int]
    bins: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Result:
    """A page of rows, the totals over all pages, and how fresh both are."""

    rows: Sequence[Row]
    totals: Row
    fresh_until: datetime | None
    more: bool


class RollupStore:
    """Windows of usage, appended and rolled up to minutes, hours, days and months."""

    def __init__(self, db: Database, sources: int, step: int = 5_000) -> None:
        """Keeps windows in the service's database.

        Args:
            db: the service's.
            sources: the count of partitions of ``usage.events``.
            step: rows that a roll-up moves at once.
        """
        self._db = db
        self._sources = sources
        self._step = step

    async def append(
        self, connection: asyncpg.Connection, part: int, records: Sequence[Windows]
    ) -> int:
        """Append what is new in the records, in the caller's transaction; returns the rows."""
        last: dict[int, int] = {
            row["source"]: row["last_seq"]
            for row in await connection.fetch(
                "SELECT source, last_seq FROM sources WHERE part = $1", part
            )
        }
        watermarks: dict[int, int] = {}
        fresh: list[Delta] = []
        for record in records:
            if record.source is not None:
                found = deltas(record, last.get(record.source, 0))
                fresh += found
                if found:
                    last[record.source] = found[-1].seq
            for source, mark in record.watermarks.items():
                watermarks[source] = max(mark, watermarks.get(source, mark))
        if fresh:
            await self._insert(connection, part, fresh)
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
        return len(fresh)

    async def _insert(
        self, connection: asyncpg.Connection, part: int, fresh: Sequence[Delta]
    ) -> None:
        series = {d.series.series_id: d.series for d in fresh}
        await connection.executemany(
            f"""INSERT INTO series (part, org_id, series_id, {", ".join(DIMENSIONS)})
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                ON CONFLICT DO NOTHING""",
            [(part, s.org_id, s.series_id, *s.values) for s in series.values()],
        )
        await connection.copy_records_to_table(
            "deltas",
            columns=["part", "source", "seq", "org_id", *_ROW.split(", ")],
            records=[
                (
                    part,
                    d.source,
                    d.seq,
                    d.series.org_id,
                    d.start,
                    d.series.series_id,
                    *d.sums,
                    d.latency_bins,
                    d.latency_counts,
                )
                for d in fresh
            ],
        )

    async def roll_up(self, part: int) -> int:
        """Move what has arrived into minutes, hours, days and months; returns the rows moved.

        A step is one transaction of bounded length, however much waits.
        """
        total = 0
        while True:
            async with self._db.change(Scope(), call=None) as change:
                moved: int = await change.connection.fetchval(_ROLL_UP, part, self._step)
            total += moved
            if moved < self._step:
                return total

    async def query(self, query: Query) -> Result:
        """Rows, totals and freshness, all from one snapshot."""
        sql, arguments = _select(query, self._sources)
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(_PLANNER)
            found = await connection.fetch(sql, *arguments)
        rows = [_row(r) for r in found if r["key"] is not None]
        totals = next(r for r in found if r["key"] is None)
        more = len(rows) > query.limit
        return Result(rows[: query.limit], _row(totals), totals["fresh_until"], more)

    async def top(self, query: Query, dimension: str, limit: int) -> list[Row]:
        """The costliest values of one dimension, then the busiest; without sketches."""
        arguments: list[object] = [query.part, query.org_id]
        grouped = _grouped(query, arguments)
        arguments.append(limit)
        sql = f"""WITH {grouped}
            SELECT {dimension}::text AS key, NULL::timestamptz AS bucket, {_SUMMED},
                   '{{}}'::bigint[] AS bins
            FROM g WHERE {dimension} IS NOT NULL GROUP BY {dimension}
            ORDER BY sum(cost_nano) DESC, sum(events) DESC, 1 LIMIT ${len(arguments)}"""
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(_PLANNER)
            return [_row(r) for r in await connection.fetch(sql, *arguments)]

    async def forget(self, change: Change, part: int, org_id: UUID) -> None:
        """Remove every window of a deleted organization."""
        for table in ("deltas", *TABLES.values(), "series"):
            await change.connection.execute(
                f"DELETE FROM {table} WHERE part = $1 AND org_id = $2",
                part,
                org_id,
            )


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)


def _grouped(query: Query, arguments: list[object]) -> str:
    """The CTEs ``w`` (windows in the range) and ``g`` (with dimensions and filters)."""
    parts = []
    for piece in query.pieces:
        arguments += [piece.start, piece.end]
        n = len(arguments)
        parts.append(
            f"SELECT {_ROW} FROM {piece.table} WHERE part = $1 AND org_id = $2"
            f" AND start >= ${n - 1} AND start < ${n}"
        )
    arguments += [query.start, query.end]
    n = len(arguments)
    parts.append(
        f"SELECT {_ROW} FROM deltas WHERE part = $1 AND org_id = $2"
        f" AND start >= ${n - 1} AND start < ${n}"
    )
    conditions = ""
    for name, value in (query.filters or {}).items():
        arguments.append(value)
        conditions += f" AND s.{name} = ${len(arguments)}"
    return f"""w AS ({" UNION ALL ".join(parts)}),
        g AS MATERIALIZED (
            SELECT w.*, {", ".join("s." + d for d in DIMENSIONS)}
            FROM w JOIN series AS s ON s.part = $1 AND s.org_id = $2 AND s.series_id = w.series_id
            WHERE true{conditions})"""


def _select(query: Query, sources: int) -> tuple[str, list[object]]:
    arguments: list[object] = [query.part, query.org_id]
    grouped = _grouped(query, arguments)
    bucket = (
        "NULL::timestamptz"
        if query.granularity == "all"
        else f"date_trunc('{query.granularity}', start, 'UTC')"
    )
    # A text that sorts by time, then by each dimension, a missing one first; what marks the start
    # of a dimension is escaped inside of one.
    label = (
        f"to_char({bucket} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI')"
        if query.granularity != "all"
        else "''"
    )
    keyed = " || ".join(
        [
            label,
            *(
                rf"coalesce(E'\x01=' || replace({d}::text, E'\x01', E'\x01\x02'), E'\x01-')"
                for d in query.group_by
            ),
        ]
    )
    shown = ", ".join(
        f"max({d}::text) AS {d}" if d in query.group_by else f"NULL::text AS {d}"
        for d in DIMENSIONS
    )
    arguments += [query.after, query.limit + 1, sources]
    after, limit, count = (f"${len(arguments) - i}" for i in (2, 1, 0))
    return (
        f"""WITH {grouped},
        k AS (SELECT g.*, {bucket} AS bucket, ({keyed}) COLLATE "C" AS key FROM g),
        page AS (
            SELECT key, min(bucket) AS bucket, {shown}, {_SUMMED}
            FROM k GROUP BY key HAVING {after}::text IS NULL OR key > {after}
            ORDER BY key LIMIT {limit}),
        bins AS (
            SELECT key, bin, sum(count)::bigint AS count
            FROM k CROSS JOIN LATERAL unnest(latency_bins, latency_counts) AS u(bin, count)
            GROUP BY GROUPING SETS ((key, bin), (bin))),
        sketches AS (SELECT key, array_agg(ARRAY[bin, count] ORDER BY bin) AS bins
            FROM bins GROUP BY key)
        SELECT page.*, sketches.bins, NULL::timestamptz AS fresh_until
        FROM page LEFT JOIN sketches USING (key)
        UNION ALL
        SELECT NULL, NULL, {", ".join(f"NULL::text AS {d}" for d in DIMENSIONS)},
            {", ".join(f"coalesce(sum({m}), 0)::numeric" for m in SUMS)},
            (SELECT sketches.bins FROM sketches WHERE key IS NULL),
            (SELECT CASE WHEN count(watermark) = {count}::int THEN min(watermark) END
             FROM sources WHERE part = $1)
        FROM g""",
        arguments,
    )


def _row(record: asyncpg.Record) -> Row:
    return Row(
        key=record["key"] or "",
        start=record["bucket"],
        dimensions={d: record[d] for d in DIMENSIONS if d in record},
        sums={m: int(record[m]) for m in SUMS},
        bins=[(b, n) for b, n in record["bins"] or ()],
    )
