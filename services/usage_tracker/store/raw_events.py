"""Raw events as people ask for them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from common.database import Connection, Database, Scope
from services.usage_tracker.domain.judging import MAX_AHEAD
from services.usage_tracker.domain.ranges import RangeTooLong
from services.usage_tracker.domain.raw_events import MONEY, Adjustment, RawEvent
from services.usage_tracker.domain.windows import TOKENS

EVENT_FIELDS = (
    *("event_id", "at", "event_type", "org_id", "project_id", "team_id", "user_id", "user_ref"),
    *("api_key_id", "received_at", "model", "provider", "service_tier", "mcp_server", "tool"),
    *("session_id", "request_id", "decision_id", "status", "error_type", *TOKENS),
    *("latency_us", "metadata", "client_cost_nano", *MONEY, "price_version"),
)
# Until an event is received after ingest has judged its time.
IN_HAND = timedelta(hours=1)
# Seconds to look for one page; the caller of the rpc waits for 5.
_PATIENCE = 3.0

# An event's own time, and its id.
Place = tuple[datetime, UUID]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events of an organization.

    ``equal`` is by the names of columns; ``raw`` is how long before its reception an event may be.
    """

    org_id: UUID
    raw: timedelta
    equal: Mapping[str, object]


class RawEventView:
    """The events of an organization as they were at one moment."""

    def __init__(self, connection: Connection, wanted: Wanted) -> None:
        self._connection = connection
        self._wanted = wanted
        self._until = _now() + _PATIENCE

    async def receptions(self, start: datetime, end: datetime) -> list[datetime] | None:
        """When the event whose id is wanted may have been received; None where no id is wanted.

        Args:
            start: included, by the event's own time.
            end: excluded.
        """
        event_id = self._wanted.equal.get("event_id")
        if event_id is None:
            return None
        rows = await self._connection.fetch(
            """
            SELECT DISTINCT received_at FROM event_ids
            WHERE uuid_hash_extended(event_id, 0) = uuid_hash_extended($1, 0) AND event_id = $1
                AND org_id = $2 AND received_at >= $3 AND received_at < $4
            """,
            event_id,
            self._wanted.org_id,
            *self._reception(start, end),
        )
        return [row["received_at"] for row in rows]

    async def between(
        self,
        start: datetime,
        end: datetime,
        after: Place | None,
        limit: int,
        received: Sequence[datetime] | None = None,
    ) -> list[RawEvent]:
        """Events of a time, the latest first.

        Args:
            start: included, by the events' own times.
            end: excluded.
            after: the place of the last event before them.
            limit: at most so many.
            received: only those received then.

        Raises:
            RangeTooLong: it takes seconds.
        """
        wanted = self._wanted
        given = [(name, value) for name, value in wanted.equal.items() if value is not None]
        chosen = "".join(f" AND {name} = ${n}" for n, (name, _) in enumerate(given, 9))
        values = [value for _, value in given]
        if received is not None:
            values.append(received)
            chosen += f" AND received_at = ANY (${8 + len(values)}::timestamptz[])"
        left_ms = int((self._until - _now()) * 1000)
        if left_ms <= 0:
            raise RangeTooLong
        try:
            await self._connection.execute(f"SET LOCAL statement_timeout = {left_ms}")
            rows = await self._connection.fetch(
                f"""
                SELECT part, {", ".join(EVENT_FIELDS)} FROM events
                WHERE org_id = $1 AND at >= $2 AND at < $3 AND received_at >= $4
                    AND received_at < $5
                    AND ($6::timestamptz IS NULL OR (at, event_id) < ($6, $7)) {chosen}
                ORDER BY at DESC, event_id DESC LIMIT $8
                """,
                wanted.org_id,
                start,
                end,
                *self._reception(start, end),
                *(after or (None, None)),
                limit,
                *values,
            )
        except asyncpg.QueryCanceledError as error:
            raise RangeTooLong from error
        return await _adjusted(self._connection, wanted.org_id, rows)

    def _reception(self, start: datetime, end: datetime) -> tuple[datetime, datetime]:
        return start - MAX_AHEAD, end + self._wanted.raw + IN_HAND


class RawEventStore:
    """Reads what is kept."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @asynccontextmanager
    async def view(self, wanted: Wanted) -> AsyncIterator[RawEventView]:
        """All that was counted until now."""
        async with self._db.read(Scope((wanted.org_id,))) as connection:
            yield RawEventView(connection, wanted)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _adjusted(
    connection: Connection, org_id: UUID, rows: Sequence[asyncpg.Record]
) -> list[RawEvent]:
    """The events with what became of their costs."""
    found = defaultdict(list)
    if rows:
        adjustments = await connection.fetch(
            f"""
            SELECT a.event_id, old_version, new_version, unpriced, {", ".join(MONEY)}
            FROM unnest($2::smallint[], $3::uuid[], $4::timestamptz[]) AS e (part, id, received_at)
            JOIN adjustments AS a ON a.part = e.part AND a.org_id = $1 AND a.event_id = e.id
                AND a.received_at = e.received_at
            ORDER BY a.number
            """,
            org_id,
            *(list(column) for column in _columns(rows, ("part", "event_id", "received_at"))),
        )
        for row in adjustments:
            found[row["event_id"]].append(
                Adjustment(
                    row["old_version"],
                    row["new_version"],
                    row["unpriced"],
                    {name: row[name] for name in MONEY},
                )
            )
    return [RawEvent(dict(row), tuple(found[row["event_id"]])) for row in rows]


def _columns(rows: Sequence[asyncpg.Record], names: Iterable[str]) -> Iterable[list[object]]:
    return ([row[name] for row in rows] for name in names)
