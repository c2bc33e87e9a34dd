"""Windows of usage: appended, moved on, asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from common.database import Scope
from common.database.copying import CopyRows, copy_rows
from common.threads import off_loop
from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import Deltas, Fresh, Windows, arrived, fresh
from services.analytics.store.asking import PLANNER, Query, Result, Row, grouped, row_of, select
from services.analytics.store.blocks import (
    EPOCH,
    MANY_WINDOWS,
    MOST_WINDOWS,
    Packed,
    keep,
    merge,
    packed,
    take_before,
    waiting,
    waiting_before,
)
from services.analytics.store.rollup import SUMMED, move

if TYPE_CHECKING:
    import asyncpg

    from common.database import Database

_DELTA_COLUMNS = ("part", "start", "series_id", *SUMS, "org_id", "latency_bins", "latency_counts")
_SERIES_COLUMNS = ("series_id", "org_id", *DIMENSIONS)
_SERIES_ARRAYS = ", ".join(
    f"${n}::{'uuid' if name.endswith('_id') else 'text'}[]"
    for n, name in enumerate(_SERIES_COLUMNS, start=2)
)
_INSERT_SERIES = f"""INSERT INTO series (part, {", ".join(_SERIES_COLUMNS)})
    SELECT $1, * FROM unnest({_SERIES_ARRAYS}) ON CONFLICT DO NOTHING"""
_MINUTE_US = 60_000_000
_MOST_SERIES = 100_000


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append has added: rows, and series that were not known to be stored."""

    rows: int
    series: Collection[bytes]


class RollupStore:
    """Windows of usage, appended and rolled up to minutes, hours, days and months."""

    def __init__(self, db: Database, step: int = 5_000, most: int = MOST_WINDOWS) -> None:
        """Keeps windows in the service's database.

        Args:
            db: the service's.
            step: rows that a roll-up moves at once.
            most: windows of a block.
        """
        self._db = db
        self._step = step
        self._most = most
        # By organization and id; stored for good: those of an organization go when nothing of it
        # comes any more.
        self._series: set[bytes] = set()

    async def append(
        self,
        connection: asyncpg.Connection,
        part: int,
        records: Sequence[Windows],
        until: Mapping[int, int] | None = None,
    ) -> Appended:
        """Append what is new in the records, in the caller's transaction.

        The caller tells ``remember`` what came of it, once that has committed.

        Args:
            connection: in a transaction.
            part: of ``usage.windows``.
            records: in their order.
            until: by source, the last number that is to be applied; of sources that are not named
                nothing is. All numbers when absent.
        """
        known = await connection.fetch(
            """SELECT s.source, s.last_seq, c.generation, c.count
               FROM sources AS s LEFT JOIN source_counts AS c ON c.part = $1
               WHERE s.part = $1""",
            part,
        )
        last: dict[int, int] = {row["source"]: row["last_seq"] for row in known}
        told = max((r.sources for r in records if r.sources is not None), default=None)
        if told is not None and (not known or tuple(known[0])[2:] != told):
            await self._count_sources(connection, part, *told)
        watermarks: dict[int, int] = {}
        found: list[Fresh] = []
        for record in records:
            if record.source is not None:
                most = None if until is None else until.get(record.source, 0)
                new = fresh(record, last.get(record.source, 0), most)
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
        new, series, some = await off_loop(count > MANY_WINDOWS, self._stored, found)
        if new:
            await connection.execute(_INSERT_SERIES, part, *series)
        await keep(connection, part, some)
        return new

    def _stored(
        self, found: Sequence[Fresh]
    ) -> tuple[Collection[bytes], Sequence[Sequence[object]], Packed]:
        """Series that are new, the same as columns, and what has arrived, as blocks."""
        some = arrived(found)
        deltas = some.deltas
        new = dict(some.new(self._series))
        series: list[list[object]] = [
            [UUID(bytes=deltas.series[index].tobytes()) for index in new.values()]
        ]
        for column in (deltas.orgs, *some.dimensions.values()):
            series.append([_uuid(column.at(index)) for index in new.values()])
        return new.keys(), series, packed(deltas, self._most)

    def remember(self, appended: Appended) -> None:
        """Note which series are stored, so that they are not stored with every batch."""
        if len(self._series) + len(appended.series) > _MOST_SERIES:
            self._series.clear()
        self._series.update(appended.series)

    async def applied(self) -> Mapping[int, int]:
        """By source, the highest number that was applied in any part."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                "SELECT source, max(last_seq) AS seq FROM sources GROUP BY source"
            )
        return {row["source"]: row["seq"] for row in rows}

    async def gather(self, part: int) -> int:
        """Make one block of small ones; returns how many they were."""
        async with self._db.change(Scope(), call=None) as change:
            return await merge(change.connection, part, self._most)

    async def waiting(self, part: int, before: datetime) -> int:
        """About how many windows wait to be rolled up."""
        async with self._db.session() as connection:
            return await waiting_before(connection, part, before)

    async def roll_up(self, part: int, before: datetime) -> int:
        """Move the windows before a time on into minutes, hours, days and months.

        A step is one transaction of bounded length, however much waits.

        Returns:
            How many windows were moved.
        """
        before = before.replace(second=0, microsecond=0)
        # What a process of the release before has left.
        total = await self._move("recent", part, before)
        while True:
            async with self._db.change(Scope(), call=None) as change:
                over = await take_before(change.connection, part, before, self._most)
                if over is not None:
                    rows = await off_loop(True, _delta_rows, part, over)
                    await copy_rows(change.connection, "deltas", _DELTA_COLUMNS, rows)
            total += await self._move("deltas", part)
            if over is None:
                return total

    async def _move(self, table: str, part: int, before: datetime | None = None) -> int:
        total = 0
        while True:
            async with self._db.change(Scope(), call=None) as change:
                moved = await move(change.connection, table, part, self._step, before)
            total += moved
            if moved < self._step:
                return total

    async def fresh_until(self) -> dict[int, datetime]:
        """Of each partition: everything accepted before is in its windows, less the clocks' skew.

        Those of which that is not known yet are left out.
        """
        async with self._db.session() as connection:
            rows = await connection.fetch(
                """SELECT c.part, min(s.watermark) AS fresh_until
                   FROM source_counts AS c
                   JOIN sources AS s ON s.part = c.part AND s.source < c.count
                   GROUP BY c.part, c.count HAVING count(s.watermark) = c.count"""
            )
        return {row["part"]: row["fresh_until"] for row in rows}

    async def query(self, query: Query) -> Result:
        """Rows, totals and freshness, all from one snapshot."""
        async with self._db.read(Scope((query.org_id,))) as connection:
            await connection.execute(PLANNER)
            sql, arguments = select(query, await waiting(connection, query))
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
            groups = grouped(query, await waiting(connection, query), arguments)
            arguments.append(limit)
            sql = f"""WITH {groups}
                SELECT {dimension}::text AS key, NULL::timestamptz AS bucket, {SUMMED},
                       '{{}}'::bigint[] AS bins
                FROM g WHERE {dimension} IS NOT NULL GROUP BY {dimension}
                ORDER BY sum(cost_nano) DESC, sum(events) DESC, 1 LIMIT ${len(arguments)}"""
            return [row_of(r) for r in await connection.fetch(sql, *arguments)]


def _delta_rows(part: int, deltas: Deltas) -> bytes:
    rows = CopyRows(len(deltas), len(_DELTA_COLUMNS))
    rows.int2(part).timestamp(deltas.minutes * _MINUTE_US).raw(deltas.series)
    for name in SUMS:
        rows.int8(deltas.sums[name])
    rows.coded((deltas.orgs.encoded(), deltas.orgs.codes))
    sketches = deltas.sketches
    rows.int4_arrays(sketches.bins, sketches.ends).int8_arrays(sketches.counts, sketches.ends)
    return rows.finish()


def _uuid(value: bytes | str | None) -> UUID | str | None:
    return UUID(bytes=value) if isinstance(value, bytes) else value


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)
