"""Raw events as people ask for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from common.database import Connection, Database, Scope
from services.usage_tracker.domain.judging import MAX_AHEAD
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

    async def between(
        self, start: datetime, end: datetime, after: Place | None, limit: int
    ) -> list[RawEvent]:
        """Events of a time, the latest first.

        Args:
            start: included, by the events' own times.
            end: excluded.
            after: the place of the last event before them.
            limit: at most so many.
        """
        wanted = self._wanted
        given = [(name, value) for name, value in wanted.equal.items() if value is not None]
        equal = "".join(f" AND {name} = ${n}" for n, (name, _) in enumerate(given, 9))
        rows = await self._connection.fetch(
            f"""
            SELECT part, {", ".join(EVENT_FIELDS)} FROM events
            WHERE org_id = $1 AND at >= $2 AND at < $3 AND received_at >= $4 AND received_at < $5
                AND ($6::timestamptz IS NULL OR (at, event_id) < ($6, $7)) {equal}
            ORDER BY at DESC, event_id DESC LIMIT $8
            """,
            wanted.org_id,
            start,
            end,
            start - MAX_AHEAD,
            end + wanted.raw + IN_HAND,
            *(after or (None, None)),
            limit,
            *(value for _, value in given),
        )
        return await _adjusted(self._connection, wanted.org_id, rows)


class RawEventStore:
    """Reads what is kept."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @asynccontextmanager
    async def view(self, wanted: Wanted) -> AsyncIterator[RawEventView]:
        """All that was counted until now."""
        async with self._db.read(Scope((wanted.org_id,))) as connection:
            yield RawEventView(connection, wanted)


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
