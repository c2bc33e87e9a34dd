"""All raw events of a time, as they are taken out before they expire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from uuid import UUID

import asyncpg

from common.database import Connection, Database, Scope
from common.errors import Conflict
from common.timeseries import partitions
from services.usage_tracker.domain.judging import MAX_AHEAD
from services.usage_tracker.domain.raw_events import MONEY
from services.usage_tracker.store.ledger import EVENTS
from services.usage_tracker.store.raw_events import EVENT_FIELDS, IN_HAND
from services.usage_tracker.store.repricing import ADJUSTMENTS
from services.usage_tracker.store.sessions import has_sessions

# Seconds for which some rows may be waited for.
_PATIENCE = 600.0
# Costs are those of now.
EXPORTED = (
    *(name for name in EVENT_FIELDS if name not in (*MONEY, "price_version")),
    *MONEY,
    *("price_version", "unpriced", "counted_cost_nano", "counted_price_version", "adjustments"),
)


class Expired(Conflict):
    """Some of the events that are asked for are there no more."""

    code = "expired"


class ExportStore:
    """Reads the days of events one by one, without a sort, in one snapshot.

    Args:
        db: of the ledger.
        raw: how long events are kept, and how old one may be when it comes.
    """

    def __init__(self, db: Database, raw: timedelta) -> None:
        self._db = db
        self._raw = raw

    @asynccontextmanager
    async def snapshot(
        self, org_id: UUID, start: datetime, end: datetime
    ) -> AsyncIterator[Snapshot]:
        """All that was counted until now.

        Args:
            org_id: whose events.
            start: included, by the events' own times.
            end: excluded.

        Raises:
            Expired: some of them may have been dropped.
        """
        async with self._db.read(Scope((org_id,))) as connection:
            found = Snapshot(connection, org_id, start, end)
            first, last = (start - MAX_AHEAD).date(), (end + self._raw + IN_HAND).date()
            await found.hold(first, last)
            # Days are dropped by the least watermark of all parts, which is no later.
            watermark: datetime | None = await connection.fetchval(
                "SELECT max(watermark) FROM relays"
            )
            if watermark is not None and first < (watermark - self._raw).date():
                raise Expired(
                    f"Raw events of {first} (UTC) may have been dropped; those of times from"
                    f" {(watermark - self._raw).date()} 00:05 on are whole."
                )
            yield found


class Snapshot:
    """The events of an organization and a time.

    Whoever drops other days does not wait for it: it asks partitions and never their parent.
    """

    def __init__(
        self, connection: Connection, org_id: UUID, start: datetime, end: datetime
    ) -> None:
        self._connection = connection
        self._asked = org_id, start, end
        self._tables: list[tuple[str, str | None]] = []

    async def hold(self, first: date, last: date) -> None:
        """Keep the days from being dropped.

        Raises:
            Expired: one was dropped in this moment.
        """
        adjusted = await partitions(self._connection, ADJUSTMENTS)
        for day, events in (await partitions(self._connection, EVENTS)).items():
            if first <= day <= last:
                self._tables.append((events, adjusted.get(day)))
                tables = [table for table in self._tables[-1] if table is not None]
                try:
                    await self._connection.execute(
                        f"LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE"
                    )
                except asyncpg.UndefinedTableError as error:
                    raise Expired(f"Raw events of {day} (UTC) have been dropped.") from error

    async def watermark(self) -> datetime | None:
        """Whatever was accepted before it is here; None where a part has told of none."""
        found: datetime | None = await self._connection.fetchval(
            """
            SELECT CASE WHEN count(watermark) = max(l.partitions) THEN min(watermark) END
            FROM relays AS r JOIN layout AS l ON r.part < l.partitions
            """
        )
        return found

    async def is_known(self) -> bool:
        """Whether the organization has ever had an event."""
        return await has_sessions(self._connection, self._asked[0])

    async def batches(self, size: int) -> AsyncIterator[list[asyncpg.Record]]:
        """Every event once, with the columns of ``EXPORTED``, some at a time."""
        for events, adjusted in self._tables:
            cursor = await self._connection.cursor(_query(events, adjusted), *self._asked)
            while rows := await cursor.fetch(size, timeout=_PATIENCE):
                yield rows


def _query(events: str, adjusted: str | None) -> str:
    same = ", ".join(f"e.{name}" for name in EVENT_FIELDS if name not in (*MONEY, "price_version"))
    changes = f"""
        SELECT part, event_id, received_at, count(*) AS n, sum(unpriced) AS unpriced,
            (array_agg(new_version ORDER BY number DESC))[1] AS version,
            {", ".join(f"sum({name})::bigint AS {name}" for name in MONEY)}
        FROM {adjusted} WHERE org_id = $1 GROUP BY 1, 2, 3
    """
    none = f"""
        SELECT NULL::smallint AS part, NULL::uuid AS event_id, NULL::timestamptz AS received_at,
            0 AS n, 0 AS unpriced, NULL::text AS version,
            {", ".join(f"0::bigint AS {name}" for name in MONEY)} WHERE false
    """
    priced = "(e.cost_nano IS NULL)::integer + coalesce(a.unpriced, 0) = 0"
    now = ", ".join(
        f"CASE WHEN {priced} THEN coalesce(e.{name}, 0) + coalesce(a.{name}, 0) END AS {name}"
        for name in MONEY
    )
    return f"""
        SELECT {same}, {now},
            CASE WHEN a.n > 0 THEN a.version ELSE e.price_version END AS price_version,
            e.model IS NOT NULL AND NOT ({priced}) AS unpriced,
            e.cost_nano AS counted_cost_nano, e.price_version AS counted_price_version,
            coalesce(a.n, 0) AS adjustments
        FROM {events} AS e LEFT JOIN ({changes if adjusted else none}) AS a
            USING (part, event_id, received_at)
        WHERE e.org_id = $1 AND e.at >= $2 AND e.at < $3
    """
