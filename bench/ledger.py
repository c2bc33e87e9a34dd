"""What the database of usage_tracker holds, counted by SQL and compared id by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import numpy as np

_HEADER, _TRAILER = 19, 2
_ID = np.dtype([("high", ">u8"), ("low", ">u8")])
# A row of COPY BINARY with one uuid: the count of fields, its length, its bytes.
_ROW = np.dtype([("fields", ">i2"), ("length", ">i4"), ("id", _ID)])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Acknowledged ids without a raw row, raw rows beyond the first of their id, and both sums."""

    lost: int
    doubled: int
    rows: int
    windows: int


async def verdict(database_url: str, org_id: str, files: Sequence[Path]) -> Verdict:
    """Compare an organization's raw rows with the acknowledged ids in the files."""
    acknowledged = np.frombuffer(b"".join(f.read_bytes() for f in files), _ID)
    connection = await asyncpg.connect(database_url, database="usage_tracker")
    chunks: list[bytes] = []

    async def keep(chunk: bytes) -> None:
        chunks.append(chunk)

    await connection.copy_from_query(
        "SELECT event_id FROM events WHERE org_id = $1", UUID(org_id), output=keep, format="binary"
    )
    windows = await connection.fetchval(
        "SELECT coalesce(sum(events), 0)::bigint FROM deltas WHERE org_id = $1", UUID(org_id)
    )
    await connection.close()
    stored = np.frombuffer(b"".join(chunks)[_HEADER:-_TRAILER], _ROW)["id"]
    distinct = np.unique(stored)
    lost = np.setdiff1d(acknowledged, distinct).size
    return Verdict(lost, stored.size - distinct.size, stored.size, windows)
