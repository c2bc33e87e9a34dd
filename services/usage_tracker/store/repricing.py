"""Orders to price events anew, and what came of them: adjustments beside rows that stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import asyncpg
import numpy as np

from common.columns import Integers, column_of
from common.database import Connection, Database
from common.timeseries import ensure_partitions_apart, partition_days
from services.usage_tracker.domain.columns import ABSENT, Batch
from services.usage_tracker.domain.judging import MAX_AHEAD, microseconds, moment
from services.usage_tracker.domain.pricing import Cost
from services.usage_tracker.domain.repricing import Counted, Repriced
from services.usage_tracker.domain.windows import DIMENSIONS, TOKENS
from services.usage_tracker.store.prices import catch_up_unpriced
from services.usage_tracker.store.walks import Range, Walk

ADJUSTMENTS = "adjustments"
# Blocks of a step: some ten thousand events.
_BLOCKS = 512
_WALK = "reprice "
_IDS = frozenset({"org_id", "project_id", "team_id", "user_id", "api_key_id"})
_CODED = (*DIMENSIONS, "service_tier", "session_id")


@dataclass(frozen=True, slots=True)
class Order:
    """An order; ``begun`` tells whether the part at hand has begun with it."""

    id: int
    org_id: UUID
    model: str | None
    unpriced_only: bool
    since: datetime
    until: datetime | None
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an order is: parts that are done, events that changed, nano-dollars more."""

    finished: bool
    parts: int
    events: int
    cost_nano: int


async def order(
    connection: Connection,
    org_id: UUID,
    *,
    model: str | None,
    unpriced_only: bool,
    since: datetime,
    until: datetime | None,
) -> int:
    """Order that events of a time be priced anew; the owners of all parts do it.

    Args:
        connection: the order stands when its transaction commits.
        org_id: whose events.
        model: of which; None is all.
        unpriced_only: leave those alone that have a price.
        since: included, by the events' own times.
        until: excluded; None is for ever.
    """
    number: int = await connection.fetchval(
        """
        INSERT INTO repricings (org_id, model, unpriced_only, since, until)
        VALUES ($1, $2, $3, $4, $5) RETURNING id
        """,
        org_id,
        model,
        unpriced_only,
        since,
        until,
    )
    return number


class RepricingStore:
    """What the owner of a part asks and writes, always in a transaction of its own part."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def open_orders(self) -> frozenset[int]:
        """The orders that are not finished."""
        async with self._db.session() as connection:
            rows = await connection.fetch("SELECT id FROM repricings WHERE finished_at IS NULL")
        return frozenset(row["id"] for row in rows)

    async def order_all(self, org_id: UUID, since: datetime, until: datetime) -> int:
        """Order that all events of a time be priced anew."""
        async with self._db.session() as connection:
            return await order(
                connection, org_id, model=None, unpriced_only=False, since=since, until=until
            )

    async def progress(self, number: int) -> Progress | None:
        """How far an order is; None where it went with its organization."""
        async with self._db.session() as connection:
            row = await connection.fetchrow(
                """
                SELECT j.finished_at IS NOT NULL AS finished,
                    count(*) FILTER (WHERE p.done) AS parts,
                    coalesce(sum(p.events), 0)::bigint AS events,
                    coalesce(sum(p.cost_nano), 0)::numeric AS cost_nano
                FROM repricings AS j LEFT JOIN repricing_parts AS p ON p.job = j.id
                WHERE j.id = $1 GROUP BY j.id
                """,
                number,
            )
        return row if row is None else Progress(**{**row, "cost_nano": int(row["cost_nano"])})

    async def next_order(
        self,
        connection: Connection,
        part: int,
        generation: int,
        *,
        after: UUID | None,
        without: Collection[int],
    ) -> Order | None:
        """An order that is not done in a part: the oldest of the organization whose turn it is.

        Args:
            connection: of the part's owner.
            part: the part.
            generation: of the layout.
            after: the organization that had its turn last.
            without: orders that are left alone.
        """
        row = await connection.fetchrow(
            """
            SELECT j.id, j.org_id, j.model, j.unpriced_only, j.since, j.until,
                p.part IS NOT NULL AS begun
            FROM repricings AS j LEFT JOIN repricing_parts AS p
                ON p.job = j.id AND p.part = $1 AND p.generation = $2
            WHERE j.finished_at IS NULL AND NOT coalesce(p.done, false)
                AND j.id <> ALL ($4::bigint[])
            ORDER BY (j.org_id > $3) DESC, j.org_id, j.id LIMIT 1
            """,
            part,
            generation,
            after,
            list(without),
        )
        return row if row is None else Order(**row)

    async def begin(self, connection: Connection, part: int, generation: int, found: Order) -> None:
        """Begin with an order in a part: what is there now will be looked at."""
        await catch_up_unpriced(connection, part)
        await connection.execute(
            """
            INSERT INTO repricing_parts AS p (part, job, generation) VALUES ($1, $2, $3)
            ON CONFLICT (part, job) DO UPDATE SET generation = excluded.generation, done = false
            """,
            part,
            found.id,
            generation,
        )
        await _walk(part, found).begin(connection, [part], await self._tables(connection, found))

    async def _tables(self, connection: Connection, found: Order) -> dict[str, list[date]]:
        if found.unpriced_only and not await connection.fetchval(
            """
            SELECT coalesce(sum(events), 0) > 0 FROM unpriced
            WHERE org_id = $1 AND ($2::text IS NULL OR model = $2)
            """,
            found.org_id,
            found.model,
        ):
            return {}
        first = (found.since - MAX_AHEAD).date()
        return {
            "events": [day for day in await partition_days(connection, "events") if day >= first]
        }

    async def next_range(
        self, connection: Connection, part: int, found: Order, parts: int
    ) -> Range | None:
        """Rows of the part that were not looked at, ``parts`` times fewer than of other orders.

        None where there are none but in another's hands.
        """
        place = await _walk(part, found).next(connection, parts)
        return place and place._replace(part=part)

    async def is_looked_at(self, connection: Connection, part: int, found: Order) -> bool:
        """Whether no rows are left, in nobody's hands either."""
        return not await _walk(part, found).left(connection)

    async def counted(
        self, connection: Connection, part: int, found: Order, place: Range
    ) -> Counted | None:
        """The order's events in a range of rows, with what they cost until now."""
        # So many probes look costly enough to the planner to compile them anew for each step.
        await connection.execute("SET LOCAL jit = off; SET LOCAL statement_timeout = '2s'")
        own = len(place.arguments) + 1
        rows = await connection.fetch(
            f"""
            SELECT e.received_at, e.at, e.event_id, {", ".join(f"e.{n}" for n in _CODED)},
                {", ".join(f"e.{name}" for name in TOKENS)},
                {", ".join(_now(name) for name in Cost._fields)},
                (e.cost_nano IS NULL)::integer + coalesce(a.unpriced, 0) = 0 AS priced,
                CASE WHEN a.adjusted THEN a.version ELSE e.price_version END AS version
            FROM (
                SELECT * FROM {place.relation} WHERE {place.where}
                    AND org_id = ${own} AND at >= ${own + 1} AND model IS NOT NULL
                    AND (${own + 2}::timestamptz IS NULL OR at < ${own + 2})
                    AND (${own + 3}::text IS NULL OR model = ${own + 3})
            ) AS e LEFT JOIN LATERAL (
                SELECT {", ".join(f"sum({n})::bigint AS {n}" for n in Cost._fields)},
                    sum(unpriced)::bigint AS unpriced, count(*) > 0 AS adjusted,
                    (array_agg(new_version ORDER BY number DESC))[1] AS version
                FROM adjustments AS a
                WHERE a.part = ${own + 5} AND a.org_id = e.org_id AND a.event_id = e.event_id
                    AND a.received_at = e.received_at
            ) AS a ON true
            WHERE NOT ${own + 4} OR (e.cost_nano IS NULL)::integer + coalesce(a.unpriced, 0) <> 0
            """,
            *place.arguments,
            found.org_id,
            found.since,
            found.until,
            found.model,
            found.unpriced_only,
            part,
        )
        return _counted(rows) if rows else None

    async def append(
        self, connection: Connection, part: int, found: Order, repriced: Repriced
    ) -> None:
        """Add adjustments, and count them with the order and the models without a price."""
        batch, more = repriced.batch, repriced.more
        received = [moment(at) for at in batch.numbers["received_at"].tolist()]
        await ensure_partitions_apart(self._db, connection, ADJUSTMENTS, _days(received))
        orgs = batch.coded["org_id"]
        number: int = await connection.fetchval("SELECT nextval('adjustment_numbers')")
        await connection.execute(
            f"""
            INSERT INTO adjustments (part, job, number, received_at, org_id, event_id, old_version,
                new_version, unpriced, {", ".join(Cost._fields)}, cost_nano)
            SELECT $1, $2, $3, new.* FROM unnest(
                $4::timestamptz[], $5::uuid[], $6::uuid[], $7::text[], $8::text[], $9::smallint[],
                $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[]
            ) AS new
            """,
            part,
            found.id,
            number,
            received,
            [UUID(bytes=orgs.at(index)) for index in range(batch.count)],
            [UUID(bytes=i.tobytes()) for i in batch.ids["event_id"]],
            repriced.old_versions,
            repriced.new_versions,
            repriced.unpriced.tolist(),
            *(column.tolist() for column in more.T),
            more.sum(axis=1).tolist(),
        )
        await connection.execute(
            """
            UPDATE repricing_parts SET events = events + $3, cost_nano = cost_nano + $4
            WHERE part = $1 AND job = $2
            """,
            part,
            found.id,
            batch.count,
            sum(more.sum(axis=1).tolist()),
        )

    async def finish(
        self, connection: Connection, part: int, found: Order, generation: int, parts: int
    ) -> None:
        """Be done with an order in a part; the last of so many parts finishes it."""
        await _walk(part, found).forget(connection)
        await connection.execute(
            "UPDATE repricing_parts SET done = true WHERE part = $1 AND job = $2", part, found.id
        )
        # Of two that are the last at once, the second sees what the first has done.
        await connection.execute("SELECT FROM repricings WHERE id = $1 FOR UPDATE", found.id)
        await connection.execute(
            """
            UPDATE repricings SET finished_at = now() WHERE id = $1 AND $3::bigint <= (
                SELECT count(*) FROM repricing_parts
                WHERE job = $1 AND generation = $2 AND done AND part < $3::bigint
            )
            """,
            found.id,
            generation,
            parts,
        )


async def drop_finished(connection: Connection, before: date) -> None:
    """Remove the orders finished before a day.

    Where raw events received before it are gone, so is every adjustment that names these.
    """
    await connection.execute(
        "DELETE FROM repricings WHERE finished_at < $1::date::timestamp AT TIME ZONE 'UTC'", before
    )


async def forget_orders(connection: Connection) -> None:
    """Forget how far the orders are in the blocks of tables; they begin anew."""
    await connection.execute("DELETE FROM walks WHERE starts_with(name, $1)", _WALK)


def _now(name: str) -> str:
    return f"coalesce(e.{name}, 0) + coalesce(a.{name}, 0) AS {name}"


def _walk(part: int, found: Order) -> Walk:
    return Walk(f"{_WALK}{found.id}/{part}", _BLOCKS)


def _days(times: Sequence[datetime]) -> set[date]:
    return {at.date() for at in times}


def _counted(rows: Sequence[asyncpg.Record]) -> Counted:
    def integers(name: str) -> Integers:
        return np.array([row[name] for row in rows], np.int64)

    def times(name: str) -> Integers:
        return np.array([microseconds(row[name]) for row in rows], np.int64)

    ids = b"".join(row["event_id"].bytes for row in rows)
    batch = Batch(
        len(rows),
        {"event_id": np.frombuffer(ids, np.uint8).reshape(len(rows), -1)},
        {
            "received_at": times("received_at"),
            "at": times("at"),
            "latency_us": np.full(len(rows), ABSENT, np.int64),
            **{name: integers(name) for name in TOKENS},
        },
        {name: column_of([_value(name, row[name]) for row in rows]) for name in _CODED},
    )
    return Counted(
        batch,
        np.stack([integers(name) for name in Cost._fields], axis=1),
        np.array([row["priced"] for row in rows], np.bool_),
        [row["version"] for row in rows],
    )


def _value(name: str, value: object) -> object:
    return value.bytes if isinstance(value, UUID) and name in _IDS else value
