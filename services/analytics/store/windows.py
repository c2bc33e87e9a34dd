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
from services.analytics.store.rollup import MOVE, MOVE_RECENT, SUMMED

if TYPE_CHECKING:
    import asyncpg

    from common.database import Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DELTA_COLUMNS = (
    *("part", "start", "series_id", *SUMS, "org_id", "latency_bins", "latency_counts"),
)
_SERIES_COLUMNS = ("series_id", "org_id", *DIMENSIONS)
_SERIES_ARRAYS = ", ".join(
    f"${n}::{'uuid' if name.endswith('_id') else 'text'}[]"
    for n, name in enumerate(_SERIES_COLUMNS, start=2)
)
_INSERT_SERIES = f"""INSERT INTO series (part, {", ".join(_SERIES_COLUMNS)})
    SELECT $1, * FROM unnest({_SERIES_ARRAYS}) ON CONFLICT DO NOTHING"""
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

    def __init__(self, db: Database, step: int = 5_000) -> None:
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
        if new:
            columns = {"org_id": some.deltas.orgs, **some.dimensions}
            await connection.execute(
                _INSERT_SERIES,
                part,
                [UUID(bytes=series) for series in new],
                *([_uuid(c.at(index)) for index in new.values()] for c in columns.values()),
            )
        await _keep(connection, part, some.deltas, data)
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
        """Make one block of small ones; returns how many they were.

        A window is written again as often as what waits has doubled.
        """
        async with self._db.change(Scope(), call=None) as change:
            connection = change.connection
            rows = await connection.fetch(
                "SELECT number, windows FROM blocks WHERE part = $1 ORDER BY windows, number", part
            )
            chosen = _small([(row["number"], row["windows"]) for row in rows])
            blocks = await _taken(connection, part, "number = ANY ($2)", chosen)
            if blocks:
                deltas, data = await off_loop(True, _one_block, blocks)
                await _keep(connection, part, deltas, data)
            return len(blocks)

    async def roll_up(self, part: int, before: datetime) -> int:
        """Move the windows before a time on into minutes, hours, days and months.

        A step is one transaction of bounded length, however much waits.

        Returns:
            How many windows were moved.
        """
        async with self._db.change(Scope(), call=None) as change:
            connection = change.connection
            blocks = await _taken(connection, part, "first < $2", before)
            if blocks:
                over, left = await off_loop(True, _over, part, blocks, before)
                await copy_rows(connection, "deltas", _DELTA_COLUMNS, over)
                if left is not None:
                    await _keep(connection, part, *left)
        return await self._move(MOVE, part) + await self._move(MOVE_RECENT, part, before)

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


async def _keep(connection: asyncpg.Connection, part: int, deltas: Deltas, data: bytes) -> None:
    """A block of deltas; ``data`` is the same, packed."""
    await connection.execute(
        "INSERT INTO blocks (part, windows, first, last, data) VALUES ($1, $2, $3, $4, $5)",
        part,
        len(deltas),
        _start(deltas.minutes.min()),
        _start(deltas.minutes.max()),
        data,
    )


async def _taken(
    connection: asyncpg.Connection, part: int, which: str, given: object
) -> list[bytes]:
    rows = await connection.fetch(
        f"DELETE FROM blocks WHERE part = $1 AND {which} RETURNING data", part, given
    )
    return [row["data"] for row in rows]


def _small(blocks: Sequence[tuple[int, int]]) -> list[int]:
    """Those, by number and size, that are worth being one: none is larger than twice all before it.

    ``blocks`` are ordered by size.
    """
    chosen: list[int] = []
    total = 0
    for number, size in blocks:
        if chosen and size > 2 * total:
            break
        chosen.append(number)
        total += size
    return chosen if len(chosen) > 1 else []


def _one_block(blocks: Sequence[bytes]) -> tuple[Deltas, bytes]:
    deltas = added_up([unpacked(data) for data in blocks])
    return deltas, deltas.packed()


def _over(
    part: int, blocks: Sequence[bytes], before: datetime
) -> tuple[bytes, tuple[Deltas, bytes] | None]:
    """The rows of windows before a time, and the others as a block."""
    deltas = added_up([unpacked(data) for data in blocks])
    over = deltas.minutes < _minute(before)
    left = deltas.where(~over)
    return _delta_rows(part, deltas.where(over)), (left, left.packed()) if len(left) else None


async def _waiting(connection: asyncpg.Connection, query: Query) -> Deltas | None:
    """What there is for a question in blocks, by the units of time that are asked for."""
    rows = await connection.fetch(
        "SELECT windows, data FROM blocks WHERE part = $1 AND first < $3 AND last >= $2",
        query.part,
        query.start,
        query.end,
    )
    if not rows:
        return None
    long = sum(row["windows"] for row in rows) > _MANY_DELTAS
    found = await off_loop(long, _asked, query, [row["data"] for row in rows])
    return found if len(found) else None


def _asked(query: Query, blocks: Sequence[bytes]) -> Deltas:
    start, end = _minute(query.start), _minute(query.end)
    found = [unpacked(data).of(query.org_id, start, end) for data in blocks]
    unit = {"minute": 1, "hour": 60}.get(query.granularity, 24 * 60)
    return added_up([deltas.by(unit) for deltas in found])


def _delta_rows(part: int, deltas: Deltas) -> bytes:
    rows = CopyRows(len(deltas), len(_DELTA_COLUMNS))
    rows.int2(part).timestamp(deltas.minutes * _MINUTE_US).raw(deltas.series)
    for name in SUMS:
        rows.int8(deltas.sums[name])
    rows.coded((deltas.orgs.encoded(), deltas.orgs.codes))
    sketches = deltas.sketches
    rows.int4_arrays(sketches.bins, sketches.ends).int8_arrays(sketches.counts, sketches.ends)
    return rows.finish()


def _minute(at: datetime) -> int:
    return int(at.timestamp()) // 60


def _start(minute: Any) -> datetime:
    return EPOCH + timedelta(minutes=int(minute))


def _uuid(value: bytes | str | None) -> UUID | str | None:
    return UUID(bytes=value) if isinstance(value, bytes) else value


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)
