"""Windows of the last minutes, packed: kept as they come, made larger, read and taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from common.threads import off_loop
from services.analytics.domain.windows import Deltas, added_up, unpacked
from services.analytics.store.asking import Query, Waiting

if TYPE_CHECKING:
    import asyncpg

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Windows of a block at most: what one transaction writes, takes out and adds up in about a second.
MOST_WINDOWS = 50_000
# So many take milliseconds.
MANY_WINDOWS = 500
Packed = list[tuple[Deltas, bytes]]


def packed(deltas: Deltas, most: int) -> Packed:
    """Deltas as blocks of so many at most."""
    starts = range(0, len(deltas), most)
    parts = [deltas.take(np.arange(s, min(s + most, len(deltas)))) for s in starts]
    return [(part, part.packed()) for part in parts]


async def keep(connection: asyncpg.Connection, part: int, blocks: Packed) -> None:
    """Store blocks."""
    for deltas, data in blocks:
        await connection.execute(
            "INSERT INTO blocks (part, windows, first, last, data) VALUES ($1, $2, $3, $4, $5)",
            part,
            len(deltas),
            moment_of(int(deltas.minutes.min())),
            moment_of(int(deltas.minutes.max())),
            data,
        )


async def merge(connection: asyncpg.Connection, part: int, most: int) -> int:
    """Make one block of small ones; returns how many they were."""
    rows = await connection.fetch(
        "SELECT number, windows FROM blocks WHERE part = $1 ORDER BY windows, number", part
    )
    found = await _take(connection, part, list(_small(rows, most)))
    if found:
        await keep(connection, part, await off_loop(True, _one, found, most))
    return len(found)


async def take_before(
    connection: asyncpg.Connection, part: int, before: datetime, most: int
) -> Deltas | None:
    """Take out windows before a whole minute, from blocks of about so many windows.

    None where there is no block that holds one.
    """
    rows = await connection.fetch(
        "SELECT number, windows FROM blocks WHERE part = $1 AND first < $2 ORDER BY number",
        part,
        before,
    )
    found = await _take(connection, part, list(_first(rows, most)))
    if not found:
        return None
    over, left = await off_loop(True, _split, found, minute_of(before), most)
    await keep(connection, part, left)
    return over


async def waiting_before(connection: asyncpg.Connection, part: int, before: datetime) -> int:
    """Windows of the blocks that hold one before a time."""
    found: int = await connection.fetchval(
        "SELECT coalesce(sum(windows), 0) FROM blocks WHERE part = $1 AND first < $2", part, before
    )
    return found


async def waiting(connection: asyncpg.Connection, query: Query) -> Waiting | None:
    """What blocks hold for a question, by the units of time that are asked for."""
    rows = await connection.fetch(
        "SELECT windows, data FROM blocks WHERE part = $1 AND first < $3 AND last >= $2",
        query.part,
        query.start,
        query.end,
    )
    if not rows:
        return None
    long = sum(row["windows"] for row in rows) > MANY_WINDOWS
    return await off_loop(long, _asked, query, [row["data"] for row in rows])


def minute_of(at: datetime) -> int:
    """The minute since 1970."""
    return int(at.timestamp()) // 60


def moment_of(minute: int) -> datetime:
    """When a minute since 1970 begins."""
    return EPOCH + timedelta(minutes=minute)


async def _take(connection: asyncpg.Connection, part: int, numbers: Sequence[int]) -> list[bytes]:
    """Those of the blocks that nobody else has taken."""
    rows = await connection.fetch(
        "DELETE FROM blocks WHERE part = $1 AND number = ANY ($2) RETURNING data", part, numbers
    )
    return [row["data"] for row in rows]


def _small(rows: Sequence[asyncpg.Record], most: int) -> Iterator[int]:
    """Blocks, by size, of which the largest is no more than twice as large as all others together.

    So a window is written again only as often as what waits becomes half as large again.
    """
    sizes = np.array([row["windows"] for row in rows], np.int64)
    before = np.cumsum(sizes) - sizes
    fits = np.flatnonzero((sizes <= 2 * before) & (before + sizes <= most))
    if len(fits):
        yield from (row["number"] for row in rows[: int(fits[-1]) + 1])


def _first(rows: Sequence[asyncpg.Record], most: int) -> Iterator[int]:
    total = 0
    for row in rows:
        if total >= most:
            return
        total += row["windows"]
        yield row["number"]


def _one(blocks: Sequence[bytes], most: int) -> Packed:
    return packed(added_up([unpacked(data) for data in blocks]), most)


def _split(blocks: Sequence[bytes], before: int, most: int) -> tuple[Deltas, Packed]:
    deltas = added_up([unpacked(data) for data in blocks])
    over = deltas.minutes < before
    return deltas.where(over), packed(deltas.where(~over), most)


def _asked(query: Query, blocks: Sequence[bytes]) -> Waiting | None:
    start, end = minute_of(query.start), minute_of(query.end)
    found = [unpacked(data).of(query.org_id, start, end) for data in blocks]
    unit = {"minute": 1, "hour": 60}.get(query.granularity, 24 * 60)
    deltas = added_up([deltas.by(unit) for deltas in found])
    return Waiting.of(deltas) if len(deltas) else None
