"""The deltas of a ledger: those that wait, packed, as rows; and all of them added up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np

from common.database import Database
from services.analytics.domain.windows import Columns
from services.usage_tracker.consumer.compaction import WindowCompaction
from services.usage_tracker.store import BlockStore
from tests.analytics.deltas import rows_of


async def waiting(db: Database, part: int = 0, after: int = 0) -> list[dict[str, Any]]:
    """The deltas of a part that are not rows yet, in their order, by the names of their columns."""
    found: list[dict[str, Any]] = []
    while blocks := await BlockStore(db).unsent(part, after):
        for first, deltas, reason in blocks:
            packed = deltas.packed(first, np.arange(len(deltas)), reason)
            found += rows_of(Columns(**packed))
        after = blocks[-1].last
    return found


async def add_up(db: Database) -> None:
    """Have all deltas sent on and made rows."""
    async with db.session() as connection:
        await connection.execute(
            """
            INSERT INTO relays (part, seq) SELECT part, last_seq FROM parts
            ON CONFLICT (part) DO UPDATE SET seq = excluded.seq
            """
        )
    await WindowCompaction(BlockStore(db), timedelta(minutes=1)).step()


async def total(db: Database, measure: str) -> int:
    """A measure of all deltas; nothing is changed."""
    async with db.session() as connection:
        rows = f"SELECT coalesce(sum({measure}), 0)::bigint FROM deltas"
        summed = int(await connection.fetchval(rows))
        parts = await connection.fetch(
            "SELECT part, min(first_seq) - 1 AS before FROM delta_blocks GROUP BY part"
        )
    for row in parts:
        summed += sum(d[measure] for d in await waiting(db, row["part"], row["before"]))
    return summed
