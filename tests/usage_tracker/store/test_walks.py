"""Walks over all rows, by where these lie."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from uuid import UUID

import pytest

from common.database import Connection, Database
from common.timeseries import drop_partitions, ensure_partitions_apart, partition_days
from services.usage_tracker.store.walks import Walk
from tests.usage_tracker.store.conftest import NOW

pytestmark = pytest.mark.store

DAYS = [NOW - timedelta(days=n) for n in range(3)]
PARTS = range(16)
# In which there are rows; the last one is of a larger number of partitions, before.
USED = (0, 3, 15)
EACH = 120


@pytest.fixture
async def walk(db: Database) -> Walk:
    """A walk with rows of some parts before it, in ranges of two blocks."""
    async with db.session() as connection:
        await connection.execute("DELETE FROM walks")
        for table in ("event_ids", "unpriced"):
            await connection.execute(f"DELETE FROM {table}")
        await ensure_partitions_apart(db, connection, "event_ids", {day.date() for day in DAYS})
        for part in USED:
            for day in DAYS:
                await connection.execute(
                    """
                    INSERT INTO event_ids (part, org_id, event_id, received_at, digest)
                    SELECT $1, $2, gen_random_uuid(), $3, 'd' FROM generate_series(1, $4)
                    """,
                    part,
                    UUID(int=1),
                    day,
                    EACH,
                )
            await connection.execute(
                """
                INSERT INTO unpriced (part, org_id, model, provider, events, first_at, last_at)
                VALUES ($1, $2, 'm', 'p', 1, now(), now())
                """,
                part,
                UUID(int=1),
            )
    return Walk("test", 2)


async def begin(connection: Connection, walk: Walk) -> None:
    days = await partition_days(connection, "event_ids")
    await walk.begin(connection, list(PARTS), {"event_ids": days, "unpriced": None})


async def seen(connection: Connection, walk: Walk) -> list[tuple[str, int, object]]:
    """The rows of all ranges that are left: their table, part and identity."""
    found = []
    identity = {"event_ids": "event_id", "unpriced": "org_id"}
    while (place := await walk.next(connection)) is not None:
        rows = await connection.fetch(
            f"SELECT part, {identity[place.relation]} FROM {place.relation} WHERE {place.where}",
            *place.arguments,
        )
        found += [(place.relation, *row) for row in rows]
    return found


async def test_each_row_is_seen_once_wherever_it_lies(db: Database, walk: Walk) -> None:
    async with db.session() as connection:
        await begin(connection, walk)
        found = await seen(connection, walk)
        assert await walk.left(connection) == 0
    assert len(set(found)) == len(found)
    by_part = {("event_ids", part): EACH * len(DAYS) for part in USED}
    assert Counter((table, part) for table, part, _ in found) == {
        **by_part,
        **{("unpriced", part): 1 for part in USED},
    }


async def test_a_day_is_walked_over_once_for_all_parts_where_these_lie_together(
    db: Database, walk: Walk, variant: str
) -> None:
    async with db.session() as connection:
        await begin(connection, walk)
        rows = await connection.fetch(
            "SELECT part, day FROM walks WHERE name = 'test' AND relation = 'event_ids'"
        )
    found = {tuple(row) for row in rows}
    parts = USED if variant == "citus" else (None,)
    assert found >= {(part, day.date()) for part in parts for day in DAYS}
    assert {part for part, _ in found} <= (set(PARTS) if variant == "citus" else {None})


async def test_it_begins_without_reading_a_row(db: Database, walk: Walk) -> None:
    """A part without rows would have to be looked for in all of a day."""

    async def read(connection: Connection) -> int:
        found: int = await connection.fetchval(
            """
            SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint
            FROM pg_stat_xact_user_tables
            WHERE relid IN (SELECT relation FROM mindweave_partitions('event_ids'))
            """
        )
        return found

    async with db.session() as connection, connection.transaction():
        before = await read(connection)
        await begin(connection, walk)
        assert await walk.left(connection) > 0
        assert await read(connection) == before


async def test_a_day_that_is_dropped_meanwhile_has_no_rows(db: Database, walk: Walk) -> None:
    async with db.session() as connection:
        await begin(connection, walk)
        await drop_partitions(connection, "event_ids", NOW.date())
        found = await seen(connection, walk)
    assert Counter(table for table, _, _ in found)["event_ids"] == EACH * len(USED)
