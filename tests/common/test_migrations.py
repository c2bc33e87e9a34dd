from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from common.clock import SystemClock
from common.database import (
    Database,
    MigrationFailed,
    MigrationRefused,
    UnsafeRole,
    bootstrap,
    grant_runtime,
    migrate,
    migration_version,
    pending,
)
from common.database.roles import scram_verifier
from common.errors import Unavailable
from common.settings import Settings, db_password
from common.testing import sealer_of, silent_telemetry
from tests.common.waiting import eventually

pytestmark = pytest.mark.store

KITS = [f"kit/{name}.sql" for name in ("0001_kit", "0002_members", "0003_variants", "0004_places")]

NAME = "migrated"


@pytest.fixture
async def owner_dsn(settings: Settings) -> AsyncIterator[str]:
    """The owner's address of an empty database."""
    admin_dsn = settings.database_url or ""
    await bootstrap(admin_dsn, NAME, settings)
    yield settings.owner_dsn(NAME)
    admin = await asyncpg.connect(admin_dsn)
    await admin.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def owner(owner_dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(owner_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def db(owner_dsn: str, settings: Settings) -> AsyncIterator[Database]:
    database = await Database.open(
        settings.runtime_dsn(NAME),
        name=NAME,
        size=2,
        clock=SystemClock(),
        sealer=sealer_of(settings, NAME),
        telemetry=silent_telemetry(NAME),
    )
    yield database
    await database.close()


def write(folder: Path, **files: str) -> Path:
    for name, sql in files.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(sql)
    return folder


async def exists(connection: Any, table: str) -> bool:
    found: bool = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
    return found


async def test_the_kits_migrations_come_before_the_services(
    owner_dsn: str, db: Database, tmp_path: Path
) -> None:
    write(
        tmp_path,
        m0001_one="CREATE TABLE one (org_id uuid); SELECT mindweave_protect('one')",
        m0002_two="CREATE TABLE two (id int)",
    )
    names = [f"{NAME}/0001_one.sql", f"{NAME}/0002_two.sql"]
    assert await pending(db, tmp_path) == [*KITS, *names]
    assert await migration_version(db) == ""
    assert await migrate(owner_dsn, NAME, tmp_path) == [*KITS, *names]
    assert await migrate(owner_dsn, NAME, tmp_path) == []
    assert await pending(db, tmp_path) == []
    assert await migration_version(db) == "0002_two.sql"


async def test_a_service_without_migrations_has_the_kits_tables(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    assert await migrate(owner_dsn, NAME, None) == KITS
    for table in ("outbox", "idempotency_keys", "consumed_events", "offsets", "partition_members"):
        assert await exists(owner, table)


async def test_of_many_runners_at_once_each_migration_is_applied_by_one(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    write(
        tmp_path,
        m0001_slow="SELECT pg_sleep(0.3); CREATE TABLE runs (id int)",
        m0002_row="INSERT INTO runs VALUES (1)",
    )
    applied = await asyncio.gather(*(migrate(owner_dsn, NAME, tmp_path) for _ in range(5)))
    assert sorted(map(len, applied)) == [0, 0, 0, 0, len(KITS) + 2]
    assert await owner.fetchval("SELECT count(*) FROM runs") == 1


async def test_a_runner_that_dies_leaves_nothing_and_the_next_one_goes_on(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    await migrate(owner_dsn, NAME, None)
    write(tmp_path, m0001_slow="CREATE TABLE slow (id int); SELECT pg_sleep(60)")
    runner = asyncio.create_task(migrate(owner_dsn, NAME, tmp_path))
    await eventually(
        lambda: owner.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE query LIKE 'CREATE TABLE slow%' AND wait_event = 'PgSleep'"
        )
    )
    with pytest.raises(Unavailable):
        await runner
    assert not await exists(owner, "slow")
    write(tmp_path, m0001_slow="CREATE TABLE slow (id int)")
    assert await migrate(owner_dsn, NAME, tmp_path) == [f"{NAME}/0001_slow.sql"]


async def test_an_edited_file_is_refused_with_its_name(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record], db: Database, tmp_path: Path
) -> None:
    write(tmp_path, m0001_one="CREATE TABLE one (id int)", m0002_two="CREATE TABLE two (id int)")
    await migrate(owner_dsn, NAME, tmp_path)
    write(tmp_path, m0001_one="CREATE TABLE one (id bigint)", m0003_three="CREATE TABLE three ()")
    with pytest.raises(MigrationRefused, match=rf"{NAME}/0001_one\.sql was edited"):
        await migrate(owner_dsn, NAME, tmp_path)
    with pytest.raises(MigrationRefused, match=rf"{NAME}/0001_one\.sql was edited"):
        await pending(db, tmp_path)
    assert not await exists(owner, "three")


async def test_an_older_release_starts_on_a_newer_database(
    owner_dsn: str, db: Database, tmp_path: Path
) -> None:
    write(tmp_path, m0001_one="CREATE TABLE one ()", m0002_two="CREATE TABLE two ()")
    await migrate(owner_dsn, NAME, tmp_path)
    (tmp_path / "0002_two.sql").unlink()
    assert await migrate(owner_dsn, NAME, tmp_path) == []
    assert await pending(db, tmp_path) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"m1_one": ""}, r"1_one\.sql is not named"),
        ({"m0001_One": ""}, r"0001_One\.sql is not named"),
        ({"m0001_a": "", "m0001_b": ""}, r"0001_a\.sql and .*0001_b\.sql have the same number"),
        ({"m0001_a": "CREATE TABLE a ();\n commit ;"}, r"0001_a\.sql must leave its transaction"),
    ],
)
async def test_files_that_are_no_sequence_are_refused(
    files: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(MigrationRefused, match=complaint):
        await migrate("postgresql://nobody@127.0.0.1:1/x", NAME, write(tmp_path, **files))


async def test_a_number_before_an_applied_one_is_refused(owner_dsn: str, tmp_path: Path) -> None:
    write(tmp_path, m0002_two="CREATE TABLE two ()")
    await migrate(owner_dsn, NAME, tmp_path)
    write(tmp_path, m0001_late="CREATE TABLE late ()")
    with pytest.raises(MigrationRefused, match=r"0001_late\.sql comes before"):
        await migrate(owner_dsn, NAME, tmp_path)


async def test_a_failing_migration_leaves_nothing_half_done_and_names_its_line(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    write(
        tmp_path,
        m0001_good="CREATE TABLE good ()",
        m0002_bad="CREATE TABLE half ();\n\nINSERT INTO nowhere VALUES (1);",
        m0003_never="CREATE TABLE never ()",
    )
    with pytest.raises(MigrationFailed, match=r'0002_bad\.sql, line 3: relation "nowhere"'):
        await migrate(owner_dsn, NAME, tmp_path)
    assert await exists(owner, "good")
    assert not await exists(owner, "half")
    assert not await exists(owner, "never")
    write(tmp_path, m0002_bad="CREATE TABLE whole ()")
    assert await migrate(owner_dsn, NAME, tmp_path) == [
        f"{NAME}/0002_bad.sql",
        f"{NAME}/0003_never.sql",
    ]


async def test_a_migration_gives_way_to_others_while_it_waits_for_a_lock(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    write(tmp_path, m0001_busy="CREATE TABLE busy (id int)")
    await migrate(owner_dsn, NAME, tmp_path)
    write(tmp_path, m0002_column="ALTER TABLE busy ADD COLUMN label text")
    held = owner.transaction()
    await held.start()
    await owner.execute("SELECT * FROM busy")
    runner = asyncio.create_task(migrate(owner_dsn, NAME, tmp_path))
    other = await asyncpg.connect(owner_dsn)
    try:
        await eventually(
            lambda: other.fetchval(
                "SELECT count(*) FROM pg_locks WHERE relation = 'busy'::regclass AND NOT granted"
            )
        )
        # Queues behind the migration's lock, which gives up.
        assert await other.fetch("SELECT * FROM busy") == []
        assert not runner.done()
        await held.rollback()
        assert await runner == [f"{NAME}/0002_column.sql"]
    finally:
        await other.close()


async def test_a_migration_that_never_gets_its_lock_says_so(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    write(tmp_path, m0001_busy="CREATE TABLE busy (id int)")
    await migrate(owner_dsn, NAME, tmp_path)
    write(tmp_path, m0002_column="ALTER TABLE busy ADD COLUMN label text")
    async with owner.transaction():
        await owner.execute("LOCK TABLE busy IN ACCESS SHARE MODE")
        with pytest.raises(MigrationFailed, match=r"0002_column\.sql got no lock"):
            await migrate(owner_dsn, NAME, tmp_path, patience=0)


async def test_a_runner_gives_up_on_another_that_never_ends(
    owner_dsn: str, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    await owner.execute("SELECT pg_advisory_lock(hashtextextended('mindweave.migrations', 0))")
    with pytest.raises(MigrationFailed, match="another runner"):
        await migrate(owner_dsn, NAME, None, patience=0)


async def test_databases_and_roles_can_be_made_again_and_all_at_once(settings: Settings) -> None:
    admin_dsn = settings.database_url or ""
    names = ["made_one", "made_two", "made_one"]
    await asyncio.gather(*(bootstrap(admin_dsn, name, settings) for name in names))
    admin = await asyncpg.connect(admin_dsn)
    try:
        for name in set(names):
            runtime = await asyncpg.connect(settings.runtime_dsn(name))
            assert await runtime.fetchval("SHOW timezone") == "UTC"
            await runtime.close()
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def test_an_admin_that_is_no_superuser_can_make_them(settings: Settings) -> None:
    admin_dsn = settings.database_url or ""
    superuser = await asyncpg.connect(admin_dsn)
    await superuser.execute("CREATE ROLE cloud_admin LOGIN CREATEDB CREATEROLE PASSWORD 'cloud'")
    cloud = admin_dsn.replace("postgres:password", "cloud_admin:cloud")
    assert cloud != admin_dsn
    try:
        for _ in range(2):
            await bootstrap(cloud, "rented", settings)
        assert await migrate(settings.owner_dsn("rented"), "rented", None)
        runtime = await asyncpg.connect(settings.runtime_dsn("rented"))
        assert await runtime.fetchval("SELECT count(*) FROM outbox") == 0
        await runtime.close()
    finally:
        await superuser.execute("DROP DATABASE IF EXISTS rented WITH (FORCE)")
        for role in ("rented", "rented_owner", "cloud_admin"):
            await superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await superuser.close()


async def test_a_runtime_role_with_too_many_rights_is_refused(settings: Settings) -> None:
    admin = await asyncpg.connect(settings.database_url)
    try:
        for right in ("SUPERUSER", "BYPASSRLS"):
            await admin.execute(f"CREATE ROLE mighty LOGIN {right}")
            with pytest.raises(UnsafeRole, match="mighty"):
                await bootstrap(settings.database_url or "", "mighty", settings)
            await admin.execute("DROP ROLE mighty")
    finally:
        await admin.close()


async def test_no_other_service_may_look_into_a_database(
    owner_dsn: str, settings: Settings
) -> None:
    admin_dsn = settings.database_url or ""
    await bootstrap(admin_dsn, "stranger", settings)
    stranger = settings.runtime_dsn("stranger").replace("/stranger?", f"/{NAME}?")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(stranger)
    admin = await asyncpg.connect(admin_dsn)
    await admin.execute("DROP DATABASE stranger")
    await admin.close()


async def test_a_database_made_by_others_is_opened_to_its_runtime_role(
    owner_dsn: str, settings: Settings
) -> None:
    password = db_password(settings, "foreign_runtime")
    dsn = settings.runtime_dsn(NAME).replace(
        f"{NAME}:{db_password(settings, NAME)}", f"foreign_runtime:{password}"
    )
    admin = await asyncpg.connect(settings.database_url)
    try:
        await admin.execute(
            f"CREATE ROLE foreign_runtime LOGIN PASSWORD '{scram_verifier(password)}';"
            f"GRANT CONNECT ON DATABASE {NAME} TO foreign_runtime"
        )
        await grant_runtime(owner_dsn, "foreign_runtime")
        await migrate(owner_dsn, NAME, None)
        foreign = await asyncpg.connect(dsn)
        assert await foreign.fetchval("SELECT count(*) FROM outbox") == 0
        await foreign.close()
    finally:
        await admin.close()
