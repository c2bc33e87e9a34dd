"""Organizations that are gone: noted at once, removed in steps."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.analytics.domain.ranges import TABLES

if TYPE_CHECKING:
    from asyncpg import Record

    from common.database import Change, Connection, Database

# What is in a block still is dropped when it is moved on.
_TABLES = ("recent", *TABLES.values(), "series")


class DeletedOrgs:
    """Removes what deleted organizations left; nobody is shown it from their note on."""

    def __init__(self, db: Database, step: int = 20_000) -> None:
        """Works in the service's database.

        Args:
            db: the service's.
            step: rows that are removed at once.
        """
        self._db = db
        self._step = step

    async def note(self, change: Change, part: int, org_id: UUID, at: datetime) -> None:
        """Remember that all windows of an organization are to go."""
        await change.connection.execute(
            """INSERT INTO deleted_orgs (org_id, part, noted_at) VALUES ($1, $2, $3)
               ON CONFLICT DO NOTHING""",
            org_id,
            part,
            at,
        )

    async def remove_some(self, before: datetime) -> bool:
        """Remove some rows of one organization that was noted before a time.

        Returns:
            Whether there may be more to do.
        """
        async with self._db.session() as connection, connection.transaction():
            # Whoever drops a late window of it waits for the lock, and has it looked at again.
            org = await self._locked(connection, before)
            if org is None:
                return False
            # Each step would read the whole table from its start, past all that is removed.
            await connection.execute("SET LOCAL enable_seqscan = off")
            for table in _TABLES:
                gone = await connection.fetchval(
                    f"""WITH gone AS (
                            DELETE FROM {table} WHERE part = $1 AND ctid = ANY (ARRAY(
                                SELECT ctid FROM {table} WHERE part = $1 AND org_id = $2 LIMIT $3
                            )) RETURNING 1
                        )
                        SELECT count(*) FROM gone""",
                    org["part"],
                    org["org_id"],
                    self._step,
                )
                if gone:
                    return True
            await connection.execute(
                "UPDATE deleted_orgs SET removed = true WHERE part = $1 AND org_id = $2",
                org["part"],
                org["org_id"],
            )
            return True

    async def _locked(self, connection: Connection, before: datetime) -> Record | None:
        """One that nobody else is at."""
        for org in await connection.fetch(
            """SELECT org_id, part FROM deleted_orgs WHERE NOT removed AND noted_at < $1
               ORDER BY noted_at LIMIT 100""",
            before,
        ):
            found = await connection.fetchrow(
                """SELECT org_id, part FROM deleted_orgs
                   WHERE part = $1 AND org_id = $2 AND NOT removed FOR UPDATE SKIP LOCKED""",
                org["part"],
                org["org_id"],
            )
            if found is not None:
                return found
        return None

    async def left(self) -> int:
        """Deleted organizations whose rows may still be there."""
        async with self._db.session() as connection:
            left: int = await connection.fetchval(
                "SELECT count(*) FROM deleted_orgs WHERE NOT removed"
            )
        return left
