"""Events of the past days with all that is kept of them, written straight into the tables."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import asyncpg

from bench.stored import store_identities
from bench.tenant import Tenant
from common.settings import Settings
from common.timeseries import ensure_partitions
from services.analytics.domain.measures import SUMS
from services.usage_tracker.store.ledger import EVENTS, IDS

DAYS = 6
# Events of a window, on average: of a minute, an organization, a user, a project and a model.
WINDOW = 10
_BINS = 8
# Events of one statement.
_BLOCK = 500_000
_SAMPLE = 5_000
_WINDOWS = ("minutes", "hours", "days", "months")


@dataclass(frozen=True, slots=True)
class Past:
    """``bytes`` of one event on disk, by what is kept of it; ``seconds`` that the writing took."""

    bytes: Mapping[str, float]
    seconds: float


async def store_past(settings: Settings, tenants: Sequence[Tenant], count: int, rows: Path) -> Past:
    """Add so many events of the past days, like those that the organizations have sent.

    Their raw rows and identities are one each; windows are of ten events, in series that are there.
    """
    began = time.perf_counter()
    orgs = [UUID(tenant.org_id) for tenant in tenants]
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = until - timedelta(days=DAYS)
    before = await _bytes(settings)
    await store_identities(settings, tenants, count, rows)
    async with _connected(settings, "usage_tracker") as connection:
        await _store_events(connection, orgs, count, since, until)
    async with _connected(settings, "analytics") as connection:
        await _store_windows(connection, orgs, count, since, until)
    grown = await _bytes(settings)
    sizes = {name: (grown[name] - before[name]) / count for name in grown}
    return Past(sizes, time.perf_counter() - began)


async def _store_events(
    connection: asyncpg.Connection[asyncpg.Record],
    orgs: Sequence[UUID],
    count: int,
    since: datetime,
    until: datetime,
) -> None:
    days = [(since + timedelta(days=n)).date() for n in range(DAYS)]
    await ensure_partitions(connection, EVENTS, days)
    names = await connection.fetchval(
        """
        SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
        WHERE attrelid = 'events'::regclass AND attnum > 0 AND NOT attisdropped
            AND attname NOT IN ('received_at', 'at', 'event_id')
        """
    )
    await connection.execute(
        f"CREATE TEMPORARY TABLE sample AS SELECT * FROM {EVENTS}"
        f" WHERE org_id = ANY ($1) LIMIT {_SAMPLE}",
        orgs,
    )
    copies = count // await connection.fetchval("SELECT count(*) FROM sample") + 1
    for first in range(0, copies, _BLOCK // _SAMPLE):
        last = min(first + _BLOCK // _SAMPLE, copies) - 1
        await connection.execute(
            f"""
            INSERT INTO {EVENTS} (received_at, at, event_id, {names})
            SELECT t.at, t.at, gen_random_uuid(), {names}
            FROM generate_series($1::int, $2::int) AS copy CROSS JOIN sample CROSS JOIN LATERAL (
                SELECT $3::timestamptz + ($4::timestamptz - $3::timestamptz)
                    * ((copy + random()) / $5::int) AS at
                WHERE sample.part IS NOT NULL
            ) AS t
            """,
            first,
            last,
            since,
            until,
            copies,
        )


async def _store_windows(
    connection: asyncpg.Connection[asyncpg.Record],
    orgs: Sequence[UUID],
    count: int,
    since: datetime,
    until: datetime,
) -> None:
    numbers = ", ".join(SUMS)
    ones = ", ".join(str(WINDOW) for _ in SUMS)
    columns = f"part, org_id, start, series_id, {numbers}, latency_bins, latency_counts"
    series = await connection.fetchval("SELECT count(*) FROM series WHERE org_id = ANY ($1)", orgs)
    share = count / WINDOW / (series * (until - since) / timedelta(minutes=1))
    bins = f"ARRAY(SELECT generate_series(700, {699 + _BINS})), array_fill(1, ARRAY[{_BINS}])"
    await connection.execute(
        f"""
        INSERT INTO minutes ({columns})
        SELECT part, org_id, start, series_id, {ones}, {bins}
        FROM generate_series($2::timestamptz, $3::timestamptz - interval '1 minute', '1 minute')
            AS start CROSS JOIN series
        WHERE org_id = ANY ($1) AND random() < $4
        ON CONFLICT DO NOTHING
        """,
        orgs,
        since,
        until,
        share,
    )
    for below, table in pairwise(_WINDOWS):
        added = ", ".join(f"sum({name})" for name in SUMS)
        await connection.execute(
            f"""
            INSERT INTO {table} ({columns})
            SELECT part, org_id, date_trunc('{table[:-1]}', start, 'UTC'), series_id, {added},
                min(latency_bins), min(latency_counts)
            FROM {below} WHERE org_id = ANY ($1) AND start >= $2 AND start < $3
            GROUP BY 1, 2, 3, 4 ON CONFLICT DO NOTHING
            """,
            orgs,
            since if table != "months" else since.replace(day=1),
            until,
        )


async def _bytes(settings: Settings) -> dict[str, int]:
    """Of raw rows, identities and windows, with their indexes."""
    found = {}
    for name, service, tables in (
        ("raw row", "usage_tracker", f"^{EVENTS}"),
        ("identity", "usage_tracker", f"^{IDS}"),
        ("windows", "analytics", f"^({'|'.join(_WINDOWS)}|series)$"),
    ):
        # event_ids begins with the name of no other.
        others = f"^{IDS}" if name == "raw row" else "^$"
        async with _connected(settings, service) as connection:
            found[name] = await connection.fetchval(
                """
                SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
                WHERE relkind = 'r' AND relname ~ $1 AND relname !~ $2
                """,
                tables,
                others,
            )
    return found


@asynccontextmanager
async def _connected(
    settings: Settings, service: str
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    # Whose statements may take long, and who may have temporary tables.
    connection = await asyncpg.connect(settings.database_url, database=service)
    try:
        yield connection
    finally:
        await connection.close()
