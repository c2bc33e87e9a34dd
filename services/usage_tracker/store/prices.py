"""What organizations pay, which models have no price, and what clients say they paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from common.database import Connection
from services.usage_tracker.domain.judging import microseconds, moment
from services.usage_tracker.domain.overrides import Entry
from services.usage_tracker.domain.pricing import Rate, Tokens
from services.usage_tracker.domain.settling import Unpriceds

_COLUMNS = (
    "id, seq, org_id, model, provider, service_tier, effective_from, effective_until, unit_prices,"
    " discount_bp"
)


@dataclass(frozen=True, slots=True)
class Stated:
    """An entry, and when it was made."""

    entry: Entry
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UnpricedModel:
    """Events without a price by what they name."""

    model: str
    provider: str | None
    events: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The costs of clients beside ours; money in nano-dollars."""

    model: str
    provider: str | None
    events: int
    differing_events: int
    client_nano: int
    cost_nano: int
    unpriced_events: int
    without_client_cost: int


class PriceStore:
    """Sees the prices of the scope's organizations, and whatever belongs to the one asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def next_seq(self) -> int:
        """The number of a new entry; until the transaction ends nobody else gets one.

        Nor does anything commit that was priced without it.
        """
        await self._connection.execute("SELECT hold_prices(true, '3s')")
        seq: int = await self._connection.fetchval(
            "UPDATE price_changes SET last_seq = last_seq + 1 RETURNING last_seq"
        )
        return seq

    async def count(self, org_id: UUID) -> int:
        """Entries of an organization."""
        found: int = await self._connection.fetchval(
            "SELECT count(*) FROM prices WHERE org_id = $1", org_id
        )
        return found

    async def has_unit_prices(self, org_id: UUID, model: str) -> bool:
        """Whether the organization has ever stated unit prices of a model."""
        found: bool = await self._connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM prices
                WHERE org_id = $1 AND model = $2 AND unit_prices IS NOT NULL)
            """,
            org_id,
            model,
        )
        return found

    async def insert(self, stated: Stated) -> None:
        entry = stated.entry
        await self._connection.execute(
            f"""
            INSERT INTO prices ({_COLUMNS}, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            """,
            entry.id,
            entry.seq,
            entry.org_id,
            entry.model,
            entry.provider,
            entry.service_tier,
            moment(entry.since),
            None if entry.until is None else moment(entry.until),
            None if entry.rates is None else _packed(entry.rates),
            entry.discount_bp,
            stated.created_at,
        )

    async def prices(
        self, org_id: UUID, model: str | None, before: int | None, limit: int
    ) -> list[Stated]:
        """Entries of an organization, the newest first, from the one after a number on."""
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS}, created_at FROM prices
            WHERE org_id = $1 AND ($2::text IS NULL OR model = $2)
                AND ($3::bigint IS NULL OR seq < $3)
            ORDER BY seq DESC LIMIT $4
            """,
            org_id,
            model,
            before,
            limit,
        )
        return [Stated(_entry(row), row["created_at"]) for row in rows]

    async def delete_all(self, org_id: UUID) -> None:
        """Remove what a deleted organization has stated and ordered."""
        await self._connection.execute(
            """
            DELETE FROM walks AS w USING repricings AS r
            WHERE r.org_id = $1 AND starts_with(w.name, 'reprice ' || r.id || '/')
            """,
            org_id,
        )
        for table in ("prices", "repricings"):
            await self._connection.execute(f"DELETE FROM {table} WHERE org_id = $1", org_id)

    async def unpriced(
        self, org_id: UUID, after: tuple[str, str] | None, limit: int
    ) -> list[UnpricedModel]:
        """Models with events that have no price, in the order of their names."""
        rows = await self._connection.fetch(
            """
            SELECT model, nullif(provider, '') AS provider, sum(events)::bigint AS events,
                min(first_at) AS first_at, max(last_at) AS last_at
            FROM unpriced AS u
            WHERE org_id = $1 AND ($2::text IS NULL OR (model, u.provider) > ($2, $3))
            GROUP BY model, u.provider HAVING sum(events) > 0
            ORDER BY model, u.provider LIMIT $4
            """,
            org_id,
            *(after or (None, None)),
            limit,
        )
        return [UnpricedModel(**row) for row in rows]

    async def reconciled(
        self,
        org_id: UUID,
        start: datetime,
        end: datetime,
        after: tuple[str, str] | None,
        limit: int,
    ) -> list[Reconciled]:
        """Raw events of a time by model and provider, as they are priced now.

        Args:
            org_id: whose.
            start: included, by the events' own times.
            end: excluded.
            after: the last model and provider ('' for none) of the page before.
            limit: at most so many.
        """
        rows = await self._connection.fetch(
            """
            WITH adjusted AS (
                SELECT part, received_at, event_id, sum(cost_nano) AS cost_nano,
                    sum(unpriced) AS unpriced
                FROM adjustments
                WHERE org_id = $1 AND received_at >= $2::timestamptz - interval '5 minutes'
                    AND received_at < $3::timestamptz + interval '8 days'
                GROUP BY 1, 2, 3
            ), costs AS (
                SELECT e.model, coalesce(e.provider, '') AS provider, e.client_cost_nano AS theirs,
                    CASE WHEN (e.cost_nano IS NULL)::integer + coalesce(a.unpriced, 0) = 0
                        THEN coalesce(e.cost_nano, 0) + coalesce(a.cost_nano, 0) END AS ours
                FROM events AS e LEFT JOIN adjusted AS a USING (part, received_at, event_id)
                WHERE e.org_id = $1 AND e.at >= $2 AND e.at < $3 AND e.model IS NOT NULL
                    AND e.received_at >= $2::timestamptz - interval '5 minutes'
                    AND e.received_at < $3::timestamptz + interval '8 days'
                    AND ($4::text IS NULL OR (e.model, coalesce(e.provider, '')) > ($4, $5))
            ), both_given AS (SELECT *, theirs IS NOT NULL AND ours IS NOT NULL AS b FROM costs)
            SELECT model, nullif(provider, '') AS provider,
                count(*) FILTER (WHERE b) AS events,
                count(*) FILTER (WHERE b AND theirs <> ours) AS differing_events,
                coalesce(sum(theirs) FILTER (WHERE b), 0)::numeric AS client_nano,
                coalesce(sum(ours) FILTER (WHERE b), 0)::numeric AS cost_nano,
                count(*) FILTER (WHERE theirs IS NOT NULL AND ours IS NULL) AS unpriced_events,
                count(*) FILTER (WHERE theirs IS NULL) AS without_client_cost
            FROM both_given AS g GROUP BY model, g.provider
            ORDER BY model, g.provider LIMIT $6
            """,
            org_id,
            start,
            end,
            *(after or (None, None)),
            limit,
        )
        money = ("client_nano", "cost_nano")
        return [Reconciled(**{**row, **{name: int(row[name]) for name in money}}) for row in rows]


async def last_price(connection: Connection) -> int:
    """The number of the newest entry of all organizations."""
    seq: int = await connection.fetchval("SELECT last_seq FROM price_changes")
    return seq


async def hold_prices(connection: Connection, patience: int = 3) -> int:
    """As ``last_price``; until the transaction ends there is no newer one.

    A transaction that then asks for nothing for ``patience`` seconds is ended, so that who states
    prices waits for no process that stands still.
    """
    seq: int = await connection.fetchval("SELECT hold_prices(false, $1)", f"{patience}s")
    return seq


async def price_entries(connection: Connection, after: int) -> list[Entry]:
    """The entries of all organizations with greater numbers."""
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM price_entries($1)", after)
    return [_entry(row) for row in rows]


async def catch_up_unpriced(connection: Connection, part: int) -> None:
    """Count the events without a price of deltas that a worker added who did not; the writer's."""
    # The part's writer is the caller: what is read here stays so.
    behind = await connection.fetchrow(
        "SELECT unpriced_seq, last_seq FROM parts WHERE part = $1 AND unpriced_seq < last_seq", part
    )
    if behind is None:
        return
    await connection.execute(
        """
        INSERT INTO unpriced AS u (part, org_id, model, provider, events, first_at, last_at)
        SELECT part, org_id, model, coalesce(provider, ''), sum(unpriced_events), min(start),
            max(start)
        FROM deltas
        WHERE part = $1 AND seq > $2 AND seq <= $3 AND unpriced_events <> 0 GROUP BY 1, 2, 3, 4
        ON CONFLICT (part, org_id, model, provider) DO UPDATE SET
            events = u.events + excluded.events,
            first_at = least(u.first_at, excluded.first_at),
            last_at = greatest(u.last_at, excluded.last_at)
        """,
        part,
        behind["unpriced_seq"],
        behind["last_seq"],
    )
    await connection.execute(
        "UPDATE parts SET unpriced_seq = $2 WHERE part = $1", part, behind["last_seq"]
    )


async def note_unpriced(connection: Connection, part: int, found: Unpriceds) -> None:
    """Add events without a price; the caller is the part's writer."""
    if not found:
        return
    rows = [
        (org_id, model, provider or "", some.events, moment(some.first_at), moment(some.last_at))
        for (org_id, model, provider), some in found.items()
    ]
    orgs, *others = zip(*rows, strict=True)
    await connection.execute(
        """
        INSERT INTO unpriced AS u (part, org_id, model, provider, events, first_at, last_at)
        SELECT $1, * FROM unnest(
            $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[]
        )
        ON CONFLICT (part, org_id, model, provider) DO UPDATE SET
            events = u.events + excluded.events,
            first_at = least(u.first_at, excluded.first_at),
            last_at = greatest(u.last_at, excluded.last_at)
        """,
        part,
        [UUID(bytes=org_id) for org_id in orgs],
        *others,
    )


def _packed(rates: Sequence[Rate | None]) -> dict[str, Any]:
    named = zip(Tokens._fields, rates, strict=True)
    return {kind: [rate.base, rate.steps] for kind, rate in named if rate is not None}


def _rates(packed: Mapping[str, Any]) -> tuple[Rate | None, ...]:
    found = (packed.get(kind) for kind in Tokens._fields)
    return tuple(rate and Rate(rate[0], tuple((o, n) for o, n in rate[1])) for rate in found)


def _entry(row: asyncpg.Record) -> Entry:
    until, unit_prices = row["effective_until"], row["unit_prices"]
    return Entry(
        id=row["id"],
        seq=row["seq"],
        org_id=row["org_id"],
        model=row["model"],
        provider=row["provider"],
        service_tier=row["service_tier"],
        since=microseconds(row["effective_from"]),
        until=None if until is None else microseconds(until),
        rates=None if unit_prices is None else _rates(unit_prices),
        discount_bp=row["discount_bp"],
    )
