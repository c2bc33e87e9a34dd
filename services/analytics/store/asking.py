"""Questions about one organization's windows, each answered by one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from asyncpg.pgproto import pgproto

from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.ranges import Granularity, Piece
from services.analytics.domain.windows import Deltas
from services.analytics.store.rollup import ROW, SUMMED

if TYPE_CHECKING:
    import asyncpg

# The statistics never know the rows of the last minutes: without this the planner joins them with
# their series by a nested loop, which took 30 times as long for 3,000 rows.
PLANNER = "SET LOCAL enable_nestloop = off; SET LOCAL jit = off"
# The columns of what waits, and their types.
_WAITING = {
    "minute": "bigint",
    "series_id": "uuid",
    **dict.fromkeys(SUMS, "bigint"),
    "low": "integer",
    "high": "integer",
}


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


@dataclass(frozen=True, slots=True)
class Waiting:
    """Windows that are in no table yet, as the arguments of a statement."""

    columns: Sequence[Sequence[object]]
    bins: Sequence[int]
    counts: Sequence[int]

    @classmethod
    def of(cls, deltas: Deltas) -> Waiting:
        sketches = deltas.sketches
        return cls(
            [
                deltas.minutes.tolist(),
                [pgproto.UUID(series.tobytes()) for series in deltas.series],
                *(deltas.sums[name].tolist() for name in SUMS),
                (sketches.starts + 1).tolist(),
                sketches.ends.tolist(),
            ],
            sketches.bins.tolist(),
            sketches.counts.tolist(),
        )


def grouped(query: Query, waiting: Waiting | None, arguments: list[object]) -> str:
    """The CTEs ``w`` (windows in the range) and ``g`` (with dimensions and filters).

    Args:
        query: what is asked.
        waiting: windows of the organization in the range that are in no table yet.
        arguments: of the statement, which are added to.
    """
    parts = []
    for piece in query.pieces:
        arguments += [piece.start, piece.end]
        n = len(arguments)
        parts.append(
            f"SELECT {ROW} FROM {piece.table} WHERE part = $1 AND org_id = $2"
            f" AND start >= ${n - 1} AND start < ${n}"
        )
    arguments += [query.start, query.end]
    n = len(arguments)
    parts += [
        f"SELECT {ROW} FROM {table} WHERE part = $1 AND org_id = $2"
        f" AND start >= ${n - 1} AND start < ${n}"
        for table in ("recent", "deltas")
    ]
    if waiting is not None:
        parts.append(_unnested(waiting, arguments))
    conditions = ""
    for name, value in (query.filters or {}).items():
        arguments.append(value)
        conditions += f" AND s.{name} = ${len(arguments)}"
    return f"""w AS ({" UNION ALL ".join(parts)}),
        g AS MATERIALIZED (
            SELECT w.*, {", ".join("s." + d for d in DIMENSIONS)}
            FROM w JOIN series AS s ON s.part = $1 AND s.org_id = $2 AND s.series_id = w.series_id
            WHERE NOT EXISTS (
                SELECT FROM deleted_orgs WHERE part = $1 AND org_id = $2){conditions})"""


def _unnested(waiting: Waiting, arguments: list[object]) -> str:
    """The windows as rows; the sketch of one is a slice of all."""
    n = len(arguments) + 1
    arguments += [waiting.bins, waiting.counts, *waiting.columns]
    arrays = ", ".join(f"${n + 2 + i}::{kind}[]" for i, kind in enumerate(_WAITING.values()))
    return f"""SELECT to_timestamp(minute * 60) AS start, series_id, {", ".join(SUMS)},
            (${n}::integer[])[low:high] AS latency_bins,
            (${n + 1}::bigint[])[low:high] AS latency_counts
        FROM unnest({arrays}) AS waiting ({", ".join(_WAITING)})"""


def select(query: Query, waiting: Waiting | None) -> tuple[str, list[object]]:
    arguments: list[object] = [query.part, query.org_id]
    groups = grouped(query, waiting, arguments)
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
    arguments += [query.after, query.limit + 1]
    after, limit = (f"${len(arguments) - i}" for i in (1, 0))
    return (
        f"""WITH {groups},
        k AS (SELECT g.*, {bucket} AS bucket, ({keyed}) COLLATE "C" AS key FROM g),
        page AS (
            SELECT key, min(bucket) AS bucket, {shown}, {SUMMED}
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
            (SELECT CASE WHEN count(watermark) = c.count THEN min(watermark) END
             FROM source_counts AS c JOIN sources AS s ON s.part = $1 AND s.source < c.count
             WHERE c.part = $1 GROUP BY c.count)
        FROM g""",
        arguments,
    )


def row_of(record: asyncpg.Record) -> Row:
    return Row(
        key=record["key"] or "",
        start=record["bucket"],
        dimensions={d: record[d] for d in DIMENSIONS if d in record},
        sums={m: int(record[m]) for m in SUMS},
        bins=[(b, n) for b, n in record["bins"] or ()],
    )
