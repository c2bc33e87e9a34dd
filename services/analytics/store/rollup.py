"""How windows move on to minutes, hours, days and months; those of deleted organizations end."""

from __future__ import annotations

from services.analytics.domain.measures import SUMS
from services.analytics.domain.ranges import TABLES

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


def _moved(table: str, condition: str) -> str:
    return f"""
moved AS (
    DELETE FROM {table} WHERE part = $1 AND ctid = ANY (ARRAY(
        SELECT ctid FROM {table} WHERE part = $1 AND {condition} LIMIT $2)) RETURNING *
), kept AS (
    SELECT * FROM moved WHERE NOT EXISTS (
        SELECT FROM deleted_orgs WHERE deleted_orgs.org_id = moved.org_id)
)"""


def _rows(unit: str, below: str) -> str:
    """The rows of ``below`` summed by a unit of time."""
    table = TABLES[unit]
    start = f"date_trunc('{unit}', start, 'UTC')"
    return f"""
{table}_sums AS (
    SELECT part, org_id, {start} AS start, series_id, {SUMMED} FROM {below} GROUP BY 1, 2, 3, 4
), {table}_bins AS (
    SELECT org_id, start, series_id, array_agg(bin) AS latency_bins,
           array_agg(count) AS latency_counts
    FROM (SELECT org_id, {start} AS start, series_id, bin, sum(count)::bigint AS count
          FROM {below} CROSS JOIN LATERAL unnest(latency_bins, latency_counts) AS u(bin, count)
          GROUP BY 1, 2, 3, 4) AS counted
    GROUP BY 1, 2, 3
), {table}_rows AS (
    SELECT part, org_id, start, series_id, {", ".join(SUMS)},
           coalesce(latency_bins, '{{}}') AS latency_bins,
           coalesce(latency_counts, '{{}}') AS latency_counts
    FROM {table}_sums LEFT JOIN {table}_bins USING (org_id, start, series_id)
)"""


def _written(table: str, rows: str) -> str:
    return f"""
{table}_written AS (
    INSERT INTO {table} AS kept (part, org_id, {ROW}) SELECT part, org_id, {ROW} FROM {rows}
    ON CONFLICT (part, org_id, start, series_id) DO UPDATE SET {_ADDED}
)"""


# A late window of a deleted organization may have brought its series with it.
_LOOK_AGAIN = """
look_again AS (
    UPDATE deleted_orgs SET removed = false WHERE org_id IN (SELECT org_id FROM moved)
)"""


def _move(table: str, condition: str) -> str:
    steps = (
        _moved(table, condition),
        _LOOK_AGAIN,
        _rows("minute", "kept"),
        _written("minutes", "minutes_rows"),
        _rows("hour", "minutes_rows"),
        _written("hours", "hours_rows"),
        _rows("day", "hours_rows"),
        _written("days", "days_rows"),
        _rows("month", "days_rows"),
        _written("months", "months_rows"),
    )
    return f"WITH {', '.join(steps)} SELECT count(*) FROM moved"


MOVE = _move("deltas", "true")
# What a process of the release before has left.
MOVE_RECENT = _move("recent", "start < $3")
