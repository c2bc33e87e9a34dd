from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from common.database import Database, Scope, migrate
from common.settings import Settings

pytestmark = pytest.mark.store

NAME = "tenants"
FIRST = """
CREATE TABLE things (id uuid PRIMARY KEY, org_id uuid NOT NULL, owner_id uuid, label text);
SELECT mindweave_protect('things');
CREATE POLICY own ON things FOR SELECT USING (owner_id = mindweave_user());
CREATE TABLE houses (id uuid PRIMARY KEY, label text);
SELECT mindweave_protect('houses', 'id');
"""
BACKFILL = "UPDATE things SET label = 'backfilled';"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_things.sql").write_text(FIRST)
    return folder


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]], folder: Path) -> Database:
    return await service_database(NAME, folder, size=1)


async def insert(db: Database, org: UUID, owner: UUID | None = None) -> UUID:
    thing = uuid4()
    async with db.change(Scope((org,))) as change:
        await change.connection.execute(
            "INSERT INTO things VALUES ($1, $2, $3, 'new')", thing, org, owner
        )
    return thing


async def ids(db: Database, scope: Scope) -> set[UUID]:
    async with db.read(scope) as connection:
        return {row["id"] for row in await connection.fetch("SELECT id FROM things")}


async def test_the_runtime_role_is_bound_by_row_level_security(db: Database) -> None:
    async with db.session() as connection:
        role = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
        owned = await connection.fetchval(
            "SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole"
        )
    assert role is not None
    assert role["rolname"] == NAME
    assert not any(
        role[right]
        for right in (
            "rolsuper",
            "rolbypassrls",
            "rolcreaterole",
            "rolcreatedb",
            "rolreplication",
        )
    )
    assert owned == 0


async def test_a_transaction_sees_the_rows_of_its_organizations_alone(db: Database) -> None:
    ours, theirs = uuid4(), uuid4()
    one, other = await insert(db, ours), await insert(db, theirs)
    assert await ids(db, Scope((ours,))) == {one}
    assert await ids(db, Scope((ours, theirs))) == {one, other}
    assert await ids(db, Scope((uuid4(),))) == set()


async def test_a_forgotten_scope_shows_no_rows(db: Database) -> None:
    await insert(db, uuid4())
    assert await ids(db, Scope()) == set()
    async with db.session() as connection:
        assert await connection.fetch("SELECT * FROM things") == []
        assert await connection.execute("UPDATE things SET label = 'x'") == "UPDATE 0"
        assert await connection.execute("DELETE FROM things") == "DELETE 0"


async def test_a_scope_ends_with_its_transaction_though_the_connection_is_the_same(
    db: Database,
) -> None:
    org, user = uuid4(), uuid4()
    await insert(db, org, user)
    async with db.read(Scope((org,), user)) as connection:
        first = await connection.fetchval("SELECT pg_backend_pid()")
    async with db.session() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == first
        assert await connection.fetchval("SELECT mindweave_orgs()") == []
        assert await connection.fetchval("SELECT mindweave_user()") is None
        assert await connection.fetch("SELECT * FROM things") == []


async def test_a_row_cannot_be_written_into_or_moved_to_another_organization(
    db: Database,
) -> None:
    ours, theirs = uuid4(), uuid4()
    thing = await insert(db, ours)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.change(Scope((ours,))) as change:
            await change.connection.execute(
                "INSERT INTO things VALUES ($1, $2, NULL, 'x')", uuid4(), theirs
            )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.change(Scope((ours,))) as change:
            await change.connection.execute(
                "UPDATE things SET org_id = $2 WHERE id = $1", thing, theirs
            )
    async with db.change(Scope((theirs,))) as change:
        assert await change.connection.execute("DELETE FROM things WHERE id = $1", thing) == (
            "DELETE 0"
        )


async def test_a_second_policy_shows_a_users_own_rows(db: Database) -> None:
    user = uuid4()
    thing = await insert(db, uuid4(), user)
    assert await ids(db, Scope((), user)) == {thing}
    async with db.change(Scope((), user)) as change:
        assert await change.connection.execute("UPDATE things SET label = 'x'") == "UPDATE 0"


async def test_any_column_can_be_the_one_that_names_the_organization(db: Database) -> None:
    org = uuid4()
    async with db.change(Scope((org,))) as change:
        await change.connection.execute("INSERT INTO houses VALUES ($1, 'ours')", org)
    async with db.read(Scope((uuid4(),))) as connection:
        assert await connection.fetch("SELECT * FROM houses") == []
    async with db.read(Scope((org,))) as connection:
        assert len(await connection.fetch("SELECT * FROM houses")) == 1


async def test_the_runtime_role_cannot_get_around_the_policies(db: Database) -> None:
    for statement in (
        "ALTER TABLE things DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON things USING (true)",
        "TRUNCATE things",
        "CREATE TABLE mine (id int)",
        "SET ROLE tenants_owner",
        "INSERT INTO schema_migrations VALUES ('kit', 99, 'x', 'x')",
        "INSERT INTO timeseries VALUES ('things')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.change(Scope()) as change:
                await change.connection.execute(statement)
    async with db.change(Scope()) as change:
        assert await change.connection.execute("DELETE FROM schema_migrations") == "DELETE 0"


async def test_a_backfill_of_the_owner_sees_every_row(
    db: Database, folder: Path, settings: Settings
) -> None:
    org = uuid4()
    await insert(db, org)
    await insert(db, uuid4())
    (folder / "0002_backfill.sql").write_text(BACKFILL)
    assert await migrate(settings.owner_dsn(NAME), NAME, folder) == [f"{NAME}/0002_backfill.sql"]
    owner = await asyncpg.connect(settings.owner_dsn(NAME))
    try:
        labels = await owner.fetch("SELECT DISTINCT label FROM things")
        forced = await owner.fetchval(
            "SELECT relforcerowsecurity FROM pg_class WHERE oid = 'things'::regclass"
        )
    finally:
        await owner.close()
    assert [row["label"] for row in labels] == ["backfilled"]
    assert forced


async def test_the_policy_is_evaluated_once_a_statement_so_that_an_index_serves_it(
    db: Database, settings: Settings
) -> None:
    owner = await asyncpg.connect(settings.owner_dsn(NAME))
    try:
        await owner.execute("CREATE INDEX IF NOT EXISTS things_org ON things (org_id)")
    finally:
        await owner.close()
    async with db.read(Scope((uuid4(),))) as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = await connection.fetch("EXPLAIN SELECT label FROM things WHERE org_id = $1", uuid4())
    text = "\n".join(row[0] for row in plan)
    assert "InitPlan" in text
    assert "things_org" in text
