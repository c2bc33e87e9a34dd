from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from common.database import Database, Scope
from common.errors import Unavailable
from common.settings import Settings
from common.timeseries import drop_partitions, ensure_partitions, partition_days

pytestmark = pytest.mark.store

NAME = "series"
MIGRATION = """
CREATE TABLE points (
    part smallint NOT NULL,
    at timestamptz NOT NULL,
    value bigint NOT NULL DEFAULT 7 CHECK (value > 0),
    doubled bigint GENERATED ALWAYS AS (value * 2) STORED,
    PRIMARY KEY (part, at)
) PARTITION BY RANGE (at);
CREATE INDEX points_value ON points (value);
SELECT mindweave_timeseries('points');
CREATE TABLE ids (day date NOT NULL, id uuid NOT NULL, PRIMARY KEY (day, id))
    PARTITION BY RANGE (day);
SELECT mindweave_timeseries('ids');
CREATE TABLE others (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE numbers (n int NOT NULL) PARTITION BY RANGE (n);
CREATE TABLE whole (at timestamptz NOT NULL);
"""
DAY = date(2026, 11, 21)


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_points.sql").write_text(MIGRATION)
    return await service_database(NAME, folder)


@pytest.fixture(autouse=True)
async def _no_partitions(db: Database) -> None:
    async with db.session() as connection:
        for table in ("points", "ids"):
            await drop_partitions(connection, table, date(2100, 1, 1))


def days(count: int) -> list[date]:
    return [DAY + timedelta(days=n) for n in range(count)]


async def test_the_runtime_role_makes_partitions_where_they_lack(db: Database) -> None:
    async with db.session() as connection:
        assert await ensure_partitions(connection, "points", days(3)) == 3
        assert await ensure_partitions(connection, "points", days(4)) == 1
        assert await partition_days(connection, "points") == days(4)
        assert await connection.fetchval("SELECT to_regclass('points_p20261121') IS NOT NULL")


async def test_a_row_goes_to_the_partition_of_its_day_in_utc(db: Database) -> None:
    late = datetime(2026, 11, 21, 23, 59, 59, 999999, tzinfo=UTC)
    async with db.change(Scope()) as change:
        await ensure_partitions(change.connection, "points", days(2))
        await change.connection.execute(
            "INSERT INTO points (part, at) VALUES (0, $1), (0, $2)",
            late,
            late + timedelta(microseconds=1),
        )
        rows = await change.connection.fetch(
            "SELECT tableoid::regclass::text AS part, value, doubled FROM points ORDER BY at"
        )
    assert [tuple(row) for row in rows] == [
        ("points_p20261121", 7, 14),
        ("points_p20261122", 7, 14),
    ]


async def test_a_partition_has_the_keys_checks_and_indexes_of_its_table(db: Database) -> None:
    async with db.session() as connection:
        await ensure_partitions(connection, "points", days(1))
        noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
        insert = "INSERT INTO points (part, at, value) VALUES (0, $1, $2)"
        await connection.execute(insert, noon, 1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(insert, noon, 1)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(insert, noon + timedelta(hours=1), 0)
        indexes = await connection.fetchval(
            "SELECT count(*) FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid"
            " WHERE indrelid = 'points_p20261121'::regclass"
        )
        made = await connection.fetchval(
            "SELECT count(*) FROM pg_index WHERE indrelid = 'points_p20261121'::regclass"
        )
    assert indexes == made == 2


async def test_a_table_may_be_partitioned_by_a_date(db: Database) -> None:
    async with db.session() as connection:
        assert await ensure_partitions(connection, "ids", days(2)) == 2
        await connection.execute("INSERT INTO ids VALUES ($1, gen_random_uuid())", days(2)[1])
        assert await connection.fetchval("SELECT count(*) FROM ids_p20261122") == 1


async def test_the_days_before_a_day_are_dropped_and_no_others(db: Database) -> None:
    async with db.session() as connection:
        await ensure_partitions(connection, "points", days(4))
        dropped = await drop_partitions(connection, "points", DAY + timedelta(days=2))
        assert dropped == ["points_p20261121", "points_p20261122"]
        assert await partition_days(connection, "points") == days(4)[2:]
        assert await drop_partitions(connection, "points", DAY) == []


async def test_many_at_once_make_each_partition_once(db: Database) -> None:
    async def ensure() -> int:
        async with db.session() as connection:
            return await ensure_partitions(connection, "points", days(5))

    assert sum(await asyncio.gather(*(ensure() for _ in range(4)))) == 5


async def test_a_partition_is_made_while_others_write_and_read(db: Database) -> None:
    async with db.session() as maker:
        await ensure_partitions(maker, "points", days(1))
        async with db.change(Scope()) as change:
            await change.connection.execute(
                "INSERT INTO points (part, at) VALUES (1, $1)",
                datetime(2026, 11, 21, tzinfo=UTC),
            )
            assert await ensure_partitions(maker, "points", days(2)) == 1
            assert await change.connection.fetchval("SELECT count(*) FROM points") == 1


async def test_dropping_waits_for_a_lock_again_and_again_and_its_transaction_survives(
    db: Database,
) -> None:
    async with db.change(Scope()) as change:
        await ensure_partitions(change.connection, "points", days(1))
    reading = asyncio.Event()

    async def read() -> None:
        async with db.read(Scope()) as connection:
            await connection.fetch("SELECT * FROM points")
            reading.set()
            await asyncio.sleep(1.3)

    reader = asyncio.create_task(read())
    await reading.wait()
    async with db.change(Scope()) as change:
        transaction = await change.connection.fetchval("SELECT pg_current_xact_id()::text")
        assert await drop_partitions(change.connection, "points", date(2100, 1, 1))
        assert transaction == await change.connection.fetchval("SELECT pg_current_xact_id()::text")
    await reader


async def test_a_lock_that_is_never_free_is_reported(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.timeseries._ATTEMPTS", 1)
    async with db.session() as connection:
        await ensure_partitions(connection, "points", days(1))
    async with db.read(Scope()) as connection:
        await connection.fetch("SELECT * FROM points")
        with pytest.raises(Unavailable) as caught:
            async with db.session() as dropping:
                await drop_partitions(dropping, "points", date(2100, 1, 1))
    assert caught.value.code == "try_again"


async def test_only_registered_tables_can_be_changed_so(db: Database) -> None:
    async with db.session() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="not a time series"):
            await ensure_partitions(connection, "others", days(1))
        for table in ("others", "outbox", "idempotency_keys"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="not a time series"):
                await drop_partitions(connection, table, date(2100, 1, 1))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT mindweave_timeseries('others')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DROP TABLE points")
        with pytest.raises(asyncpg.UndefinedTableError):
            await ensure_partitions(connection, "nowhere", days(1))


@pytest.mark.parametrize("table", ["whole", "numbers"])
async def test_only_a_table_partitioned_by_time_can_be_registered(
    db: Database, settings: Settings, table: str
) -> None:
    owner = await asyncpg.connect(settings.owner_dsn(NAME))
    try:
        with pytest.raises(asyncpg.RaiseError, match=f"{table} is not partitioned by range"):
            await owner.execute(f"SELECT mindweave_timeseries('{table}')")
    finally:
        await owner.close()


async def test_a_name_that_leaves_no_room_for_a_day_is_refused(
    db: Database, settings: Settings
) -> None:
    long = "a" * 54
    owner = await asyncpg.connect(settings.owner_dsn(NAME))
    try:
        with pytest.raises(asyncpg.RaiseError, match="leaves no room"):
            await owner.execute(
                f"CREATE TABLE {long} (at timestamptz) PARTITION BY RANGE (at);"
                f"SELECT mindweave_timeseries('{long}')"
            )
    finally:
        await owner.close()
