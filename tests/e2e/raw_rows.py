"""The ledger's own rows, read by SQL beside the platform, against the oracle's books."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from tests.e2e.oracle import KINDS, NANO, Oracle, cost_of

# Tenths of seconds until deltas have become rows.
_PATIENCE = 1200
# event_id, the tokens of each kind, cost in nano-dollars or None.
RawRow = tuple[Any, ...]


async def connect(database_url: str) -> asyncpg.Connection:
    """To usage_tracker's database, as the superuser of ``database_url``."""
    return await asyncpg.connect(database_url, database="usage_tracker")


async def raw_rows(connection: asyncpg.Connection, org_id: str) -> list[RawRow]:
    """Every raw row of an organization."""
    return [
        tuple(row)
        for row in await connection.fetch(
            f"SELECT event_id::text, {', '.join(KINDS)}, cost_nano FROM events WHERE org_id = $1",
            UUID(org_id),
        )
    ]


async def count_rows(connection: asyncpg.Connection, org_id: str) -> int:
    """How many raw rows an organization has."""
    return await connection.fetchval("SELECT count(*) FROM events WHERE org_id = $1", UUID(org_id))


def row_differences(rows: Sequence[RawRow], oracle: Oracle) -> list[str]:
    """Every acknowledged event that is not there just once as it was sent, and every other row."""
    times = Counter(row[0] for row in rows)
    found = [f"{name} is there {n} times" for name, n in times.items() if n > 1]
    found += [f"{name} is lost" for name in oracle.events.keys() - times.keys()]
    found += [f"{name} was never acknowledged" for name in times.keys() - oracle.events.keys()]
    for name, *stored in rows:
        event = oracle.events.get(name)
        if event is not None and stored != (expected := _as_stored(event)):
            found.append(f"{name} is {stored}, not {expected}")
    return found


async def window_differences(
    connection: asyncpg.Connection, org_id: str, oracle: Oracle
) -> list[str]:
    """Where the sums of the ledger's windows are not those of the acknowledged events."""
    for _ in range(_PATIENCE):
        if not await connection.fetchval("SELECT count(*) FROM delta_blocks"):
            break
        await asyncio.sleep(0.1)
    else:
        return ["windows wait to become rows"]
    names = ("events", "errors", "unpriced_events", *KINDS, "cost_nano")
    row = await connection.fetchrow(
        f"SELECT {', '.join(f'sum({name}) AS {name}' for name in names)}"
        " FROM deltas WHERE org_id = $1",
        UUID(org_id),
    )
    total = oracle.total()
    expected = {
        "events": total.events,
        "errors": total.errors,
        "unpriced_events": total.unpriced_events,
        "cost_nano": _nano(total.cost_usd),
    }
    for kind in KINDS:
        expected[kind] = sum(event.get(kind, 0) for event in oracle.events.values())
    return [
        f"the windows' {name} is {row[name]}, not {wanted}"
        for name, wanted in expected.items()
        if row[name] != wanted
    ]


def _as_stored(event: Any) -> list[int | None]:
    costs = cost_of(event) if "model" in event else None
    return [*(event.get(kind, 0) for kind in KINDS), None if costs is None else _nano(sum(costs))]


def _nano(usd: Decimal | int) -> int:
    return int(usd / NANO)
