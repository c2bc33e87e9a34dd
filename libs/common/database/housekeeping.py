"""Removal of what a service's database no longer needs."""

from __future__ import annotations

from datetime import timedelta

from common.database.idempotency import KEPT
from common.database.pool import Database
from common.periodic import Periodic

# Longer than any broker keeps a record that could be delivered again.
CONSUMED_KEPT = timedelta(days=14)
_BATCH = 5000


def housekeeping(db: Database, every: timedelta = timedelta(minutes=10)) -> Periodic:
    """Background work that removes what is expired."""

    async def step() -> None:
        await forget_expired(db)

    return Periodic("housekeeping", step, every=every)


async def forget_expired(db: Database) -> int:
    """Remove answers after 24 hours and ids of consumed events after 14 days; their count."""
    now = db.clock.now()
    gone = 0
    async with db.session() as connection:
        while deleted := await connection.fetchval(
            """
            WITH expired AS (
                SELECT ctid FROM idempotency_keys WHERE created_at <= $1 LIMIT $2
            ), gone AS (
                DELETE FROM idempotency_keys
                WHERE ctid IN (SELECT ctid FROM expired) AND created_at <= $1 RETURNING 1
            )
            SELECT count(*) FROM gone
            """,
            now - KEPT,
            _BATCH,
        ):
            gone += deleted
        while deleted := await connection.fetchval(
            """
            WITH expired AS (
                SELECT ctid FROM consumed_events WHERE consumed_at <= $1 LIMIT $2
            ), gone AS (
                DELETE FROM consumed_events
                WHERE ctid IN (SELECT ctid FROM expired) AND consumed_at <= $1 RETURNING 1
            )
            SELECT count(*) FROM gone
            """,
            now - CONSUMED_KEPT,
            _BATCH,
        ):
            gone += deleted
    return gone
