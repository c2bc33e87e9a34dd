"""Tables partitioned by day: a partition for each day (UTC), retention by dropping them.

A migration makes such a table with ``PARTITION BY RANGE`` of one timestamptz or date column and
registers it with ``SELECT mindweave_timeseries('name')``. Partitions are named
``<table>_p20261121``. Where the database has TimescaleDB the table becomes a hypertable of chunks
of a day, which are made by themselves and are called here as partitions would be.

``SELECT mindweave_by_part('name', …)`` says that a table's rows of one ``part`` belong together:
where the database has Citus, on one node, with those of all other such tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import date
from typing import Any, NamedTuple

import asyncpg

from common.database import Connection, Database
from common.database.connection import using

_ATTEMPTS = 20
_PAUSE = 0.1


class Place(NamedTuple):
    """Where rows of a table lie together, in blocks that ``ctid`` counts.

    Attributes:
        part: of the rows; None is all.
        day: of the rows (UTC); None in a table without days.
        blocks: that there are.
    """

    part: int | None
    day: date | None
    blocks: int


async def ensure_partitions(connection: Connection, table: str, days: Iterable[date]) -> int:
    """Make the partitions that lack; returns how many were made.

    Any role that may execute functions may call it, inside a transaction or outside of one.
    Readers and writers of the table do not wait for it.
    """
    made = 0
    for day in sorted(set(days)):
        made += await _patiently(
            connection, "SELECT mindweave_ensure_partition($1::text::regclass, $2)", table, day
        )
    return made


async def ensure_partitions_apart(
    db: Database, connection: Connection, table: str, days: Collection[date]
) -> None:
    """Make the partitions that the transaction of a connection is about to need.

    Outside of it: a table that lies on several nodes cannot be changed by one who has written to
    it. The partitions stay where the transaction is rolled back.
    """
    lacking = set(days).difference(await partition_days(connection, table)) if days else set()
    if not lacking:
        return
    apart = await db.connect()
    try:
        with using(apart):
            await ensure_partitions(apart, table, lacking)
    finally:
        apart.terminate()


async def drop_partitions(connection: Connection, table: str, before: date) -> list[str]:
    """Drop the partitions of all days before ``before``; returns their names.

    Readers and writers wait until the transaction ends, and at most 1 s for the lock itself.
    """
    dropped: list[str] = await _patiently(
        connection, "SELECT mindweave_drop_partitions($1::text::regclass, $2)", table, before
    )
    return dropped


async def partition_days(connection: Connection, table: str) -> list[date]:
    """The days that have a partition, in order."""
    rows = await connection.fetch(
        "SELECT day FROM mindweave_partition_days($1::text::regclass) AS day", table
    )
    return [row["day"] for row in rows]


async def partitions(connection: Connection, table: str) -> dict[date, str]:
    """By day, in order, the name by which its partition is locked and read without the others."""
    rows = await connection.fetch(
        "SELECT day, relation::text AS name FROM mindweave_partitions($1::text::regclass)", table
    )
    return {row["day"]: row["name"] for row in rows}


async def places(connection: Connection, table: str, parts: Collection[int]) -> list[Place]:
    """Where the rows are that are there now; no row is read for it.

    Args:
        connection: of any role.
        table: with days or without.
        parts: that are told apart where rows lie on several nodes; on one server all are together.
    """
    rows = await connection.fetch(
        "SELECT part, day, blocks FROM mindweave_places($1::text::regclass, $2::smallint[])",
        table,
        list(parts),
    )
    # What was dropped in this moment has no size.
    return [Place(*row) for row in rows if row["blocks"]]


async def _patiently(connection: Connection, sql: str, table: str, day: date) -> Any:
    failures = 0
    while True:
        try:
            async with _savepoint(connection):
                return await connection.fetchval(sql, table, day)
        except asyncpg.LockNotAvailableError:
            failures += 1
            if failures == _ATTEMPTS:
                raise
            await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def _savepoint(connection: Connection) -> AsyncIterator[None]:
    """Where a transaction runs, it survives a statement that fails in the block."""
    if not connection.is_in_transaction():
        yield
        return
    await connection.execute("SAVEPOINT patience")
    try:
        yield
    except asyncpg.LockNotAvailableError:
        await connection.execute("ROLLBACK TO patience")
        raise
    await connection.execute("RELEASE patience")
