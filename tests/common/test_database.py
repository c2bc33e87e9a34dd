from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from common.clock import SystemClock
from common.database import Database, Scope, UnsafeRole, bootstrap, migrate, pending
from common.errors import NotFound, Unavailable
from common.settings import Settings, load_settings
from common.testing import sealer_of, silent_telemetry
from fleet.embedded import Postgres
from tests.common.waiting import eventually

pytestmark = pytest.mark.store

NAME = "plain"
MIGRATION = """
CREATE TABLE notes (id int PRIMARY KEY, label text);
CREATE TABLE kinds (id uuid, at timestamptz, day date, tree jsonb, raw bytea, ids uuid[]);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_notes.sql").write_text(MIGRATION)
    return folder


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]], folder: Path) -> Database:
    return await service_database(NAME, folder)


@pytest.fixture(autouse=True)
async def _no_notes(db: Database) -> None:
    async with db.change(Scope()) as change:
        await change.connection.execute("DELETE FROM notes")


async def opened(dsn: str, settings: Settings, **options: Any) -> Database:
    given: dict[str, Any] = {
        "name": NAME,
        "size": 2,
        "clock": SystemClock(),
        "sealer": sealer_of(settings, NAME),
        "telemetry": silent_telemetry(NAME),
    }
    return await Database.open(dsn, **given | options)


async def labels(db: Database) -> list[str]:
    async with db.read(Scope()) as connection:
        return [r["label"] for r in await connection.fetch("SELECT label FROM notes ORDER BY id")]


async def test_a_change_commits_where_its_block_ends(db: Database) -> None:
    async with db.change(Scope()) as change:
        await change.connection.execute("INSERT INTO notes VALUES (1, 'kept')")
        assert await labels(db) == []
    assert await labels(db) == ["kept"]


async def test_an_error_in_its_block_rolls_a_change_back_and_is_not_changed_itself(
    db: Database,
) -> None:

    async def fail() -> None:
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'lost')")
            raise NotFound("no such note")

    with pytest.raises(NotFound, match="no such note"):
        await fail()
    with pytest.raises(asyncpg.UniqueViolationError):
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'a'), (1, 'b')")
    assert await labels(db) == []


async def test_a_cancelled_change_is_rolled_back_and_its_connection_serves_again(
    db: Database,
) -> None:
    began = asyncio.Event()

    async def endless() -> None:
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'lost')")
            began.set()
            await change.connection.execute("SELECT pg_sleep(60)")

    for _ in range(5):
        began.clear()
        task = asyncio.create_task(endless())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await labels(db) == []


async def test_a_read_shows_one_snapshot_and_writes_nothing(db: Database) -> None:
    async with db.read(Scope()) as connection:
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'later')")
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with db.read(Scope()) as connection:
            await connection.execute("INSERT INTO notes VALUES (2, 'never')")


async def test_values_come_back_as_they_are_used(db: Database) -> None:
    uuid, tree = uuid4(), {"a": [1, 2.5, None, "ä"], "b": {}}
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    async with db.change(Scope()) as change:
        await change.connection.execute(
            "INSERT INTO kinds VALUES ($1, $2, $3, $4, $5, $6)",
            uuid,
            moment,
            moment.date(),
            tree,
            b"\x00\xff",
            [uuid],
        )
        row = await change.connection.fetchrow("DELETE FROM kinds RETURNING *")
    assert row is not None
    assert isinstance(row["id"], UUID)
    assert dict(row) == {
        "id": uuid,
        "at": moment,
        "day": moment.date(),
        "tree": tree,
        "raw": b"\x00\xff",
        "ids": [uuid],
    }
    assert row["at"].tzinfo == UTC


async def test_a_superuser_is_refused_as_runtime_role(settings: Settings) -> None:
    database = await opened(settings.database_url or "", settings)
    try:
        with pytest.raises(UnsafeRole):
            await database.ping()
    finally:
        await database.close()


async def test_a_connection_that_is_lost_in_a_change_makes_it_unavailable(db: Database) -> None:
    with pytest.raises(Unavailable) as caught:
        async with db.change(Scope()) as change:
            await change.connection.execute(
                "INSERT INTO notes VALUES (1, 'lost');SELECT pg_terminate_backend(pg_backend_pid())"
            )
    assert caught.value.code == "database_unavailable"
    assert await labels(db) == []
    await db.ping()


async def test_a_deadlock_asks_the_caller_to_try_again(db: Database) -> None:
    async with db.change(Scope()) as change:
        await change.connection.execute("INSERT INTO notes VALUES (1, 'x'), (2, 'x')")
    both = asyncio.Barrier(2)

    async def crosswise(first: int, second: int) -> None:
        async with db.change(Scope()) as change:
            await change.connection.execute("SELECT FROM notes WHERE id = $1 FOR UPDATE", first)
            await both.wait()
            await change.connection.execute("SELECT FROM notes WHERE id = $1 FOR UPDATE", second)

    outcomes = await asyncio.gather(crosswise(1, 2), crosswise(2, 1), return_exceptions=True)
    failed = [outcome for outcome in outcomes if outcome is not None]
    assert len(failed) == 1
    assert isinstance(failed[0], Unavailable)
    assert failed[0].code == "try_again"


async def test_a_table_that_a_migration_changed_meanwhile_asks_to_try_again(
    db: Database, folder: Path, settings: Settings
) -> None:
    single = await opened(settings.runtime_dsn(NAME), settings, size=1)
    try:
        assert await labels(single) == []
        async with single.read(Scope()) as connection:
            assert await connection.fetch("SELECT * FROM notes") == []
        (folder / "0002_wider.sql").write_text("ALTER TABLE notes ADD COLUMN extra int")
        await migrate(settings.owner_dsn(NAME), NAME, folder)
        with pytest.raises(Unavailable) as caught:
            async with single.read(Scope()) as connection:
                await connection.fetch("SELECT * FROM notes")
        assert caught.value.code == "try_again"
        async with single.read(Scope()) as connection:
            assert await connection.fetch("SELECT * FROM notes") == []
    finally:
        await single.close()


async def test_a_pool_without_a_free_connection_is_unavailable(
    db: Database, settings: Settings
) -> None:
    small = await opened(settings.runtime_dsn(NAME), settings, size=1)
    try:
        async with small.read(Scope()):
            with pytest.raises(Unavailable):
                await small.ping()
        await small.ping()
    finally:
        await small.close()


async def test_the_pools_connections_are_counted(db: Database, settings: Settings) -> None:
    database = await opened(settings.runtime_dsn(NAME), settings)
    registry = database.telemetry.metrics.registry

    def connections(state: str) -> float | None:
        labels = {"service": NAME, "state": state}
        return registry.get_sample_value("mindweave_database_connections", labels)

    try:
        await database.ping()
        assert (connections("idle"), connections("used")) == (1, 0)
        async with database.read(Scope()), database.read(Scope()):
            assert (connections("idle"), connections("used")) == (0, 2)
        assert (connections("idle"), connections("used")) == (2, 0)
        for name in ("acquire_seconds_count", "transaction_seconds_count"):
            sample = f"mindweave_database_{name} "
            text = database.telemetry.metrics.exposition().decode()
            assert sample.strip() in text
    finally:
        await database.close()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server that the test may end."""
    server = Postgres(tmp_path / "postgres", "password")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_database(own_postgres: Postgres, folder: Path) -> AsyncIterator[Database]:
    own = load_settings(secret="x" * 40, database_url=own_postgres.admin_dsn)
    await bootstrap(own_postgres.admin_dsn, NAME, own)
    await migrate(own.owner_dsn(NAME), NAME, folder)
    database = await opened(own.runtime_dsn(NAME), own)
    yield database
    await database.close()


async def test_a_database_that_is_killed_is_unavailable_and_comes_back_without_a_restart(
    own_postgres: Postgres, own_database: Database, folder: Path
) -> None:
    async with own_database.change(Scope()) as change:
        await change.connection.execute("INSERT INTO notes VALUES (1, 'kept')")
    process = own_postgres.process
    assert process is not None

    async def cut_off() -> None:
        async with own_database.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (2, 'lost')")
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            await change.connection.execute("INSERT INTO notes VALUES (3, 'lost')")

    with pytest.raises(Unavailable):
        await cut_off()
    with pytest.raises(Unavailable) as caught:
        await own_database.ping()
    assert caught.value.retry_after
    await asyncio.to_thread(own_postgres.start)
    await own_database.ping()
    assert await labels(own_database) == ["kept"]
    assert await pending(own_database, folder) == []


async def test_a_pool_can_be_opened_before_its_database_is_up(
    own_postgres: Postgres, folder: Path
) -> None:
    own = load_settings(secret="x" * 40, database_url=own_postgres.admin_dsn)
    await bootstrap(own_postgres.admin_dsn, NAME, own)
    own_postgres.stop()
    database = await opened(own.runtime_dsn(NAME), own)
    try:
        with pytest.raises(Unavailable):
            await database.ping()
        await asyncio.to_thread(own_postgres.start)
        await database.ping()
        missing = await pending(database, folder)
        assert missing[:2] == ["kit/0001_kit.sql", f"{NAME}/0001_notes.sql"]
    finally:
        await database.close()


async def test_a_server_that_says_nothing_is_unavailable(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = await opened(f"postgresql://x:y@127.0.0.1:{port}/x", settings)
        try:
            with pytest.raises(Unavailable):
                await database.ping()
        finally:
            await database.close()


async def test_a_statement_that_does_not_end_is_cancelled(db: Database) -> None:
    with pytest.raises(Unavailable):
        async with db.read(Scope()) as connection:
            await connection.fetchval("SELECT pg_sleep(60)", timeout=0.1)
    async with db.session() as connection:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await eventually(lambda: nothing(connection.fetchval(asleep)))


async def nothing(count: Awaitable[int]) -> bool:
    return await count == 0


async def test_closing_ends_what_does_not_end_by_itself(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.database.pool.COMMAND_TIMEOUT", 0.05)
    database = await opened(settings.runtime_dsn(NAME), settings)

    async def outlive() -> None:
        async with database.read(Scope()) as connection:
            await database.close()
            await connection.fetchval("SELECT 1")

    with pytest.raises(Unavailable):
        await outlive()
    with pytest.raises(Unavailable):
        await database.ping()
