"""What the database of usage_tracker holds, counted by SQL and compared id by id."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import numpy as np
from numpy.typing import NDArray

from bench.generator import EVENT
from bench.tenant import Tenant
from common.database.copying import read_rows

# As ``COPY BINARY`` gives an integer and an id.
# Seconds until deltas have become rows, which they do once a minute.
_PATIENCE = 300
_ROW = np.dtype(
    [("number_length", ">i4"), ("number", ">i4"), ("event_id_length", ">i4"), ("event_id", "V16")]
)

Events = NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was counted.

    Attributes:
        lost: acknowledged events without a raw row.
        doubled: raw rows beyond the first of their event, and those of events stored before.
        rows: raw rows.
        windows: the sum of the events in windows.
        duplicates: what the platform itself counted as sent again.
        conflicts: what it counted as other events of an id that it had.
    """

    lost: int
    doubled: int
    rows: int
    windows: int
    duplicates: int
    conflicts: int


async def verdict(
    database_url: str, tenants: Sequence[Tenant], files: Sequence[Path], before: Events
) -> Verdict:
    """Compare the raw rows of all organizations with what was acknowledged.

    Args:
        database_url: of the superuser.
        tenants: in the order of their numbers in events.
        files: of events, as ``EVENT``.
        before: those that were stored before, and must have no raw row.
    """
    org_ids = [UUID(tenant.org_id) for tenant in tenants]
    connection = await asyncpg.connect(database_url, database="usage_tracker")
    found: list[Events] = [np.empty(0, EVENT)]

    async def keep(rows: NDArray[np.void]) -> None:
        event_ids = np.frombuffer(rows["event_id"].tobytes(), np.uint8).reshape(-1, 16)
        found.append(numbered(rows["number"], event_ids))

    await read_rows(
        connection,
        "SELECT array_position($1::uuid[], org_id), event_id FROM events WHERE org_id = ANY ($1)",
        org_ids,
        row=_ROW,
        take=keep,
    )
    for _ in range(_PATIENCE):
        if not await connection.fetchval("SELECT count(*) FROM delta_blocks"):
            break
        await asyncio.sleep(1.0)
    windows = await connection.fetchval(
        "SELECT coalesce(sum(events), 0)::bigint FROM deltas WHERE org_id = ANY ($1)", org_ids
    )
    (told,) = await connection.fetch(
        "SELECT sum(duplicates)::bigint, sum(conflicts)::bigint FROM parts"
    )
    await connection.close()
    stored = np.concatenate(found)
    distinct = np.unique(stored)
    acknowledged = np.frombuffer(b"".join(file.read_bytes() for file in files), EVENT)
    lost = int(np.isin(acknowledged, distinct, invert=True).sum())
    doubled = stored.size - distinct.size + int(np.isin(distinct, before).sum())
    return Verdict(lost, doubled, stored.size, windows, *told)


def numbered(numbers: NDArray[np.integer], event_ids: NDArray[np.uint8]) -> Events:
    """Events of the organizations of these numbers, from 1, with ids of shape (count, 16)."""
    found = np.empty((len(event_ids), EVENT.itemsize), np.uint8)
    found[:, 0], found[:, 1] = np.divmod(numbers, 256)
    found[:, 2:] = event_ids
    return found.view(EVENT).reshape(-1)
