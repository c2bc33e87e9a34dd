"""Migrations: numbered SQL files, each applied once, in order, in a transaction of its own."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg

from common.database.connection import CONNECT_TIMEOUT, Connection, connect, using

if TYPE_CHECKING:
    from common.database.pool import Database

KIT = "kit"
KIT_MIGRATIONS = Path(__file__).parent / "migrations"

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_ENDS_TRANSACTION = re.compile(r"^\s*(commit|rollback)\s*;", re.IGNORECASE | re.MULTILINE)
_PAUSE = 0.2


class MigrationRefused(Exception):
    """The files are not a sequence that could be applied, or not what was applied."""


class MigrationFailed(Exception):
    """A migration's SQL failed; nothing of this migration was kept."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A file. ``source`` is "kit" or the service's name."""

    source: str
    number: int
    file: str
    sql: str

    @property
    def name(self) -> str:
        return f"{self.source}/{self.file}"

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(source: str, folder: Path) -> list[Migration]:
    """The migrations of a folder, in order.

    Raises:
        MigrationRefused: a file's name is not ``NNNN_what.sql``, a number is there twice, or a
            file ends its transaction itself.
    """
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        named = _FILE.fullmatch(path.name)
        if named is None:
            raise MigrationRefused(f"{source}/{path.name} is not named like 0001_what.sql")
        migration = Migration(source, int(named[1]), path.name, path.read_text("utf-8"))
        if found and found[-1].number == migration.number:
            raise MigrationRefused(f"{found[-1].name} and {migration.name} have the same number")
        if _ENDS_TRANSACTION.search(migration.sql):
            raise MigrationRefused(f"{migration.name} must leave its transaction open")
        found.append(migration)
    return found


async def migrate(
    owner_dsn: str, service: str, folder: Path | None, *, patience: float = 60.0
) -> list[str]:
    """Apply what is not applied yet: the kit's migrations, then the service's.

    Any number of processes may call this at once. A migration waits at most 1 s for a lock, so
    that it blocks nobody for longer, and tries again for ``patience`` seconds.

    Args:
        owner_dsn: of the service's database, as its owner role.
        service: the service's name.
        folder: its migrations; None where it has none.
        patience: seconds to wait for another runner and for locks.

    Returns:
        The names of those applied, such as "team/0001_teams.sql".

    Raises:
        MigrationRefused: an applied file was edited, or a new one comes before an applied one.
        MigrationFailed: a migration's SQL failed or got no lock.
        Unavailable: the database does not answer or lets nobody in.
    """
    wanted = _wanted(service, folder)
    connection = await connect(owner_dsn, f"{service} migrate", command_timeout=None)
    try:
        with using(connection):
            await _become_only_runner(connection, patience)
            await _ensure_record(connection)
            todo = _unapplied(wanted, await _applied(connection))
            for migration in todo:
                await _apply(connection, migration, patience)
            return [migration.name for migration in todo]
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT)


async def pending(db: Database, folder: Path | None) -> list[str]:
    """Names of migrations that the code has and the database lacks; none means ready.

    Raises:
        MigrationRefused: as ``migrate``.
    """
    async with db.session() as connection:
        exists = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
        applied = await _applied(connection) if exists else {}
    return [migration.name for migration in _unapplied(_wanted(db.name, folder), applied)]


async def migration_version(db: Database) -> str:
    """The service's last applied migration, such as "0001_teams.sql"; "" where there is none."""
    async with db.session() as connection:
        if not await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL"):
            return ""
        found: str | None = await connection.fetchval(
            "SELECT file FROM schema_migrations WHERE source = $1 ORDER BY number DESC LIMIT 1",
            db.name,
        )
    return found or ""


def _wanted(service: str, folder: Path | None) -> list[Migration]:
    own = read_migrations(service, folder) if folder is not None else []
    return read_migrations(KIT, KIT_MIGRATIONS) + own


async def _ensure_record(connection: Connection) -> None:
    await connection.execute(
        """
        CREATE TABLE IF NOT EXISTS schema_migrations (
            source text NOT NULL,
            number integer NOT NULL,
            file text NOT NULL,
            checksum text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (source, number)
        )
        """
    )


async def _applied(connection: Connection) -> dict[tuple[str, int], str]:
    rows = await connection.fetch("SELECT source, number, checksum FROM schema_migrations")
    return {(row["source"], row["number"]): row["checksum"] for row in rows}


def _unapplied(wanted: list[Migration], applied: dict[tuple[str, int], str]) -> list[Migration]:
    todo: list[Migration] = []
    for migration in wanted:
        checksum = applied.get((migration.source, migration.number))
        if checksum is None:
            todo.append(migration)
        elif checksum != migration.checksum:
            raise MigrationRefused(
                f"{migration.name} was edited after it was applied; write a new migration instead"
            )
    for migration in todo:
        if any(s == migration.source and n > migration.number for s, n in applied):
            raise MigrationRefused(
                f"{migration.name} comes before one that is applied; give it the next number"
            )
    return todo


async def _become_only_runner(connection: Connection, patience: float) -> None:
    """Take the lock by asking again: a statement that waited would hold a snapshot meanwhile."""
    give_up = monotonic() + patience
    while not await connection.fetchval(
        "SELECT pg_try_advisory_lock(hashtextextended('mindweave.migrations', 0))"
    ):
        if monotonic() > give_up:
            raise MigrationFailed("another runner is still migrating this database")
        await asyncio.sleep(_PAUSE)


async def _apply(connection: Connection, migration: Migration, patience: float) -> None:
    give_up = monotonic() + patience
    while True:
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '1s'")
                await connection.execute(migration.sql)
                await connection.execute(
                    """
                    INSERT INTO schema_migrations (source, number, file, checksum)
                    VALUES ($1, $2, $3, $4)
                    """,
                    migration.source,
                    migration.number,
                    migration.file,
                    migration.checksum,
                )
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if monotonic() > give_up:
                raise MigrationFailed(f"{migration.name} got no lock: {error}") from error
            await asyncio.sleep(_PAUSE)
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            raise MigrationFailed(f"{migration.name}{_line(migration, error)}: {error}") from error


def _line(migration: Migration, error: asyncpg.PostgresError) -> str:
    position = getattr(error, "position", None)
    if not position:
        return ""
    return f", line {migration.sql.count(chr(10), 0, int(position) - 1) + 1}"
