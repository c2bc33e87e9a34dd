"""Windows of usage: appended, moved on, asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from common.database import Scope
from common.database.copying import CopyRows, copy_rows
from common.threads import off_loop
from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import (
    Arrived,
    Deltas,
    Fresh,
    Windows,
    added_up,
    arrived,
    fresh,
    unpacked,
)
from services.analytics.store.asking import PLANNER, Query, Result, Row, grouped, row_of, select
from services.analytics.store.rollup import GATHER, ROLL_UP, SUMMED

if TYPE_CHECKING:
    import asyncpg

    from common.database import Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DELTA_COLUMNS = (
    *("part", "start", "series_id", *SUMS, "org_id", "latency_bins", "latency_counts"),
)
_MINUTE_US = 60_000_000
_MOST_SERIES = 100_000
# So many take milliseconds.
_MANY_DELTAS = 500


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append has added: rows, and series that were not known to be stored."""

    rows: int
    series: Collection[bytes]


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
        self._series: set[bytes] = set()

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
        series = await self._insert(connection, part, found) if found else ()
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
    ) -> Collection[bytes]:
        count = sum(map(len, found))
        new, some, data = await off_loop(count > _MANY_DELTAS, self._block, found)
        await connection.executemany(
            f"""INSERT INTO series (part, org_id, series_id, {", ".join(DIMENSIONS)})
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                ON CONFLICT DO NOTHING""",
            [
                (
                    *(part, UUID(bytes=some.deltas.orgs.at(index)), UUID(bytes=series)),
                    *(_uuid(column.at(index)) for column in some.dimensions.values()),
                )
                for series, index in new.items()
            ],
        )
        await connection.execute(
            "INSERT INTO blocks (part, deltas, first, last, data) VALUES ($1, $2, $3, $4, $5)",
            part,
            count,
            _start(some.deltas.minutes.min()),
            _start(some.deltas.minutes.max()),
            data,
        )
        return new

    def _block(self, found: Sequence[Fresh]) -> tuple[dict[bytes, int], Arrived, bytes]:
        some = arrived(found)
        return dict(some.new(self._series)), some, some.deltas.packed()

    def remember(self, appended: Appended) -> None:
        """Note which series are stored, so that they are not stored with every batch."""
        if len(self._series) + len(appended.series) > _MOST_SERIES:
            self._series.clear()
        self._series.update(appended.series)

    async def gather(self, part: int) -> int:
        """Move what has arrived to the windows of the last minutes; returns the deltas moved.

        A step is one transaction of bounded length, however much waits.
        """
        total = 0
        while True:
            async with self._db.change(Scope(), call=None) as change:
                taken = await self._take(change.connection, part)
                moved: int = await change.connection.fetchval(GATHER, part, self._step)
            total += taken
            if max(taken, moved) < self._step:
                return total

    async def _take(self, connection: asyncpg.Connection, part: int) -> int:
        """Turn some blocks into deltas, each a row; returns how many had arrived in them."""
        rows = await connection.fetch(
            """WITH waiting AS (
                   SELECT number, sum(deltas) OVER (ORDER BY number) - deltas AS before
                   FROM blocks WHERE part = $1
               )
               DELETE FROM blocks WHERE part = $1
                   AND number IN (SELECT number FROM waiting WHERE before < $2)
               RETURNING deltas, data""",
            part,
            self._step,
        )
        if not rows:
            return 0
        taken: int = sum(row["deltas"] for row in rows)
        stream = await off_loop(
            taken > _MANY_DELTAS, _delta_rows, part, [row["data"] for row in rows]
        )
        await copy_rows(connection, "deltas", _DELTA_COLUMNS, stream)
        return taken

    async def roll_up(self, part: int, before: datetime) -> int:
        """Move the windows before a time on into minutes, hours, days and months, as ``gather``."""
        total = 0
        while True:
            async with self._db.change(Scope(), call=None) as change:
                moved: int = await change.connection.fetchval(ROLL_UP, part, self._step, before)
            total += moved
            if moved < self._step:
                return total

    async def query(self, query: Query) -> Result:
        """Rows, totals and freshness, all from one snapshot."""
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(PLANNER)
            sql, arguments = select(query, await _waiting(connection, query))
            found = await connection.fetch(sql, *arguments)
        rows = [row_of(r) for r in found if r["key"] is not None]
        totals = next(r for r in found if r["key"] is None)
        more = len(rows) > query.limit
        return Result(rows[: query.limit], row_of(totals), totals["fresh_until"], more)

    async def top(self, query: Query, dimension: str, limit: int) -> list[Row]:
        """The costliest values of one dimension, then the busiest; without sketches."""
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(PLANNER)
            arguments: list[object] = [query.part, query.org_id]
            groups = grouped(query, await _waiting(connection, query), arguments)
            arguments.append(limit)
            sql = f"""WITH {groups}
                SELECT {dimension}::text AS key, NULL::timestamptz AS bucket, {SUMMED},
                       '{{}}'::bigint[] AS bins
                FROM g WHERE {dimension} IS NOT NULL GROUP BY {dimension}
                ORDER BY sum(cost_nano) DESC, sum(events) DESC, 1 LIMIT ${len(arguments)}"""
            return [row_of(r) for r in await connection.fetch(sql, *arguments)]


async def _waiting(connection: asyncpg.Connection, query: Query) -> Deltas | None:
    """What has arrived for a question and is in no table of windows yet."""
    rows = await connection.fetch(
        "SELECT deltas, data FROM blocks WHERE part = $1 AND first < $3 AND last >= $2",
        query.part,
        query.start,
        query.end,
    )
    if not rows:
        return None
    long = sum(row["deltas"] for row in rows) > _MANY_DELTAS
    found = await off_loop(long, _asked, query, [row["data"] for row in rows])
    return found if len(found) else None


def _asked(query: Query, blocks: Sequence[bytes]) -> Deltas:
    start, end = (int(at.timestamp()) // 60 for at in (query.start, query.end))
    found = [unpacked(data).of(query.org_id, start, end) for data in blocks]
    return added_up(found)


def _delta_rows(part: int, blocks: Sequence[bytes]) -> bytes:
    deltas = added_up([unpacked(data) for data in blocks])
    rows = CopyRows(len(deltas), len(_DELTA_COLUMNS))
    rows.int2(part).timestamp(deltas.minutes * _MINUTE_US).raw(deltas.series)
    for name in SUMS:
        rows.int8(deltas.sums[name])
    rows.coded(deltas.orgs.encoded(), deltas.orgs.codes)
    sketches = deltas.sketches
    rows.int4_arrays(sketches.bins, sketches.ends).int8_arrays(sketches.counts, sketches.ends)
    return rows.finish()


def _start(minute: Any) -> datetime:
    return EPOCH + timedelta(minutes=int(minute))


def _uuid(value: bytes | str | None) -> UUID | str | None:
    return UUID(bytes=value) if isinstance(value, bytes) else value


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)
