"""How windows move on to minutes, hours, days and months; those of deleted organizations end."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from services.analytics.domain.measures import SUMS
from services.analytics.domain.ranges import TABLES

if TYPE_CHECKING:
    from common.database import Connection

_COLUMNS = ", ".join(SUMS)
ROW = f"start, series_id, {_COLUMNS}, latency_bins, latency_counts"
SUMMED = ", ".join(f"sum({m})::numeric AS {m}" for m in SUMS)


# Sketches stand behind each other until they are long; then they are merged bin by bin. Whoever
# reads one adds up the counts of a bin.
_LONG_SKETCH = 64
_KEPT_SHORT = (
    f"cardinality(kept.latency_bins) + cardinality(excluded.latency_bins) <= {_LONG_SKETCH}"
)


def _added_sketch(name: str, merged: str) -> str:
    return f"""{name} = CASE WHEN {_KEPT_SHORT} THEN kept.{name} || excluded.{name}
        ELSE (SELECT array_agg({merged} ORDER BY bin) FROM (
            SELECT bin, sum(count)::bigint AS count
            FROM unnest(kept.latency_bins || excluded.latency_bins,
                        kept.latency_counts || excluded.latency_counts) AS both_sides(bin, count)
            GROUP BY bin) AS merged) END"""


_ADDED = ", ".join(
    [
        *(f"{m} = kept.{m} + excluded.{m}" for m in SUMS),
        _added_sketch("latency_bins", "bin"),
        _added_sketch("latency_counts", "count"),
    ]
)


def _written(unit: str, source: str) -> str:
    """Adds rows of a part, by their places, summed by a unit of time, to those of its table."""
    table = TABLES[unit]
    kept = f"""SELECT org_id, date_trunc('{unit}', start, 'UTC') AS start, series_id,
            {_COLUMNS}, latency_bins, latency_counts
        FROM {source} WHERE part = $1 AND ctid = ANY ($2::tid[]) AND NOT EXISTS (
            SELECT FROM deleted_orgs AS d WHERE d.part = $1 AND d.org_id = {source}.org_id)"""
    return f"""
    INSERT INTO {table} AS kept (part, org_id, {ROW})
    SELECT $1, org_id, start, series_id, {", ".join(SUMS)},
        coalesce(latency_bins, '{{}}'), coalesce(latency_counts, '{{}}')
    FROM (SELECT org_id, start, series_id, {SUMMED} FROM ({kept}) AS k GROUP BY 1, 2, 3) AS sums
    LEFT JOIN (
        SELECT org_id, start, series_id, array_agg(bin) AS latency_bins,
            array_agg(count) AS latency_counts
        FROM (SELECT org_id, start, series_id, bin, sum(count)::bigint AS count
              FROM ({kept}) AS k CROSS JOIN LATERAL unnest(latency_bins, latency_counts)
                  AS u (bin, count)
              GROUP BY 1, 2, 3, 4) AS counted
        GROUP BY 1, 2, 3
    ) AS bins USING (org_id, start, series_id)
    ON CONFLICT (part, org_id, start, series_id) DO UPDATE SET {_ADDED}"""


async def move(
    connection: Connection, table: str, part: int, limit: int, before: datetime | None = None
) -> int:
    """Add rows of deltas or recent to minutes, hours, days and months, in one transaction.

    Returns:
        How many; as many as the limit where there may be more.
    """
    condition, given = ("", []) if before is None else (" AND start < $3", [before])
    # Who comes second waits here, and is given what the first has left.
    rows = await connection.fetch(
        f"SELECT ctid FROM {table} WHERE part = $1{condition} LIMIT $2 FOR UPDATE",
        part,
        limit,
        *given,
    )
    if not rows:
        return 0
    places = [row["ctid"] for row in rows]
    # A late window of a deleted organization may have brought its series with it.
    await connection.execute(
        f"""UPDATE deleted_orgs SET removed = false WHERE part = $1 AND org_id IN (
                SELECT org_id FROM {table} WHERE part = $1 AND ctid = ANY ($2::tid[]))""",
        part,
        places,
    )
    for unit in TABLES:
        await connection.execute(_written(unit, table), part, places)
    await connection.execute(
        f"DELETE FROM {table} WHERE part = $1 AND ctid = ANY ($2::tid[])", part, places
    )
    return len(rows)
