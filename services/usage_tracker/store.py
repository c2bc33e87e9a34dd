"""All SQL of usage_tracker; a statement of the ledger touches one part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from asyncpg.pgproto import pgproto

from common.database import Change, Connection, Database
from common.timeseries import drop_partitions, ensure_partitions
from services.usage_tracker.domain.judging import Row, microseconds, moment
from services.usage_tracker.domain.pricing import Cost
from services.usage_tracker.domain.settling import Arrived, First, Identity, Settled
from services.usage_tracker.domain.windows import MINUTE_US, Delta, Sums

EVENTS = "events"
IDS = "event_ids"

# The fields of a row that are written as they are.
_PLAIN = slice(Row._fields.index("user_ref"), Row._fields.index("metadata"))
_EVENT_COLUMNS = (
    *("part", "received_at", "api_key_id", "org_id", "event_id", "team_id", "project_id"),
    *("user_id", "at", "event_type"),
    *Row._fields[_PLAIN],
    "metadata",
    *Cost._fields,
    *("cost_nano", "price_version"),
)
_ID_COLUMNS = ("part", "org_id", "event_id", "received_at", "digest")
_IDS_OF_DELTA = ("project_id", "team_id", "user_id", "api_key_id")
_TEXTS_OF_DELTA = ("model", "provider", "event_type", "status", "mcp_server", "tool")
_SKETCH = ("latency_bins", "latency_counts")
_DELTA_COLUMNS = (
    *("part", "seq", "org_id", "start"),
    *_IDS_OF_DELTA,
    *_TEXTS_OF_DELTA,
    *Sums._fields,
    *_SKETCH,
)
# Rows that are encoded in one turn of the event loop: a few milliseconds.
_PACE = 500
_UNPRICED: tuple[int | None, ...] = (None,) * 5


class UsageStore:
    """Raw events, identities and deltas of windows, each row with the part of its only writer."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ready_days: frozenset[date] = frozenset()

    async def first_acceptances(
        self, connection: Connection, part: int, arrived: Sequence[Arrived], since: datetime
    ) -> dict[Identity, First]:
        """The latest acceptance, not before ``since``, of each identity that was accepted."""
        # So many probes look costly enough to the planner to compile them anew for each batch.
        await connection.execute("SET LOCAL jit = off")
        rows = await connection.fetch(
            """
            SELECT wanted.n, known.digest, known.received_at
            FROM unnest($2::uuid[], $3::uuid[]) WITH ORDINALITY AS wanted (org_id, event_id, n)
            CROSS JOIN LATERAL (
                SELECT i.digest, i.received_at FROM event_ids AS i
                WHERE i.part = $1 AND i.org_id = wanted.org_id AND i.event_id = wanted.event_id
                    AND i.received_at >= $4
                ORDER BY i.received_at DESC LIMIT 1
            ) AS known
            """,
            part,
            [pgproto.UUID(a.row.org_id) for a in arrived],
            [pgproto.UUID(a.row.event_id) for a in arrived],
            since,
        )
        return {
            arrived[row["n"] - 1].identity: First(row["digest"], microseconds(row["received_at"]))
            for row in rows
        }

    async def append(self, connection: Connection, part: int, settled: Settled) -> None:
        """Append a settled batch in the caller's transaction; the part's writer is the caller."""
        accepted = settled.accepted
        days = {moment(a.received_at).date() for a in accepted} - self._ready_days
        for table in (EVENTS, IDS):
            await ensure_partitions(connection, table, days)
        await connection.copy_records_to_table(
            IDS, columns=_ID_COLUMNS, records=_paced(_id_records(part, accepted))
        )
        await connection.copy_records_to_table(
            EVENTS, columns=_EVENT_COLUMNS, records=_paced(_event_records(part, settled))
        )
        last: int = await connection.fetchval(
            """
            INSERT INTO parts AS p (part, last_seq, duplicates, conflicts) VALUES ($1, $2, $3, $4)
            ON CONFLICT (part) DO UPDATE SET last_seq = p.last_seq + excluded.last_seq,
                duplicates = p.duplicates + excluded.duplicates,
                conflicts = p.conflicts + excluded.conflicts
            RETURNING last_seq
            """,
            part,
            len(settled.deltas),
            settled.duplicates,
            settled.conflict_count,
        )
        await connection.copy_records_to_table(
            "deltas",
            columns=_DELTA_COLUMNS,
            records=_paced(_delta_records(part, last - len(settled.deltas), settled.deltas)),
        )

    async def unsent(self, part: int, limit: int) -> dict[str, list[Any]] | None:
        """The next deltas to send on, as columns of ``usage.windows``; None where there is none."""
        ids = ", ".join(f"uuid_send({name}) AS {name}" for name in ("org_id", *_IDS_OF_DELTA))
        others = ", ".join((*_TEXTS_OF_DELTA, *Sums._fields, *_SKETCH, "reason"))
        async with self._db.session() as connection:
            rows = await connection.fetch(
                f"""
                SELECT seq, {ids}, extract(epoch FROM start)::bigint / 60 AS minute, {others}
                FROM deltas
                WHERE part = $1
                    AND seq > coalesce((SELECT seq FROM relays WHERE part = $1), 0)
                ORDER BY seq LIMIT $2
                """,
                part,
                limit,
            )
        if not rows:
            return None
        return dict(zip(rows[0].keys(), map(list, zip(*rows, strict=True)), strict=True))

    async def sent(self, part: int, seq: int) -> None:
        """Note that the deltas up to a number were sent on."""
        async with self._db.session() as connection:
            await connection.execute(
                """
                INSERT INTO relays AS r (part, seq) VALUES ($1, $2)
                ON CONFLICT (part) DO UPDATE SET seq = greatest(r.seq, excluded.seq)
                """,
                part,
                seq,
            )

    async def note_watermarks(self, watermarks: Mapping[int, datetime]) -> None:
        """Keep, by part, the watermark that was last sent on."""
        async with self._db.session() as connection:
            await connection.executemany(
                """
                INSERT INTO relays AS r (part, watermark) VALUES ($1, $2)
                ON CONFLICT (part) DO UPDATE SET watermark = greatest(r.watermark, $2)
                """,
                list(watermarks.items()),
            )

    async def least_watermark(self, parts: int) -> datetime | None:
        """Up to when everything accepted was counted and sent on, in all of so many parts."""
        async with self._db.session() as connection:
            found: datetime | None = await connection.fetchval(
                """
                SELECT CASE WHEN count(watermark) = $1 THEN min(watermark) END
                FROM relays WHERE part < $1
                """,
                parts,
            )
            return found

    async def prepare_days(self, days: Iterable[date]) -> None:
        """Make the partitions of days to come, so that no batch has to."""
        wanted = frozenset(days)
        if wanted <= self._ready_days:
            return
        async with self._db.session() as connection:
            for table in (EVENTS, IDS):
                await ensure_partitions(connection, table, wanted)
        self._ready_days = wanted

    async def expire(self, events_before: date, ids_before: date) -> list[str]:
        """Drop the days before; returns the names of their partitions."""
        async with self._db.session() as connection:
            dropped = await drop_partitions(connection, EVENTS, events_before)
            return dropped + await drop_partitions(connection, IDS, ids_before)

    async def note_deleted(self, change: Change, org_id: UUID, at: datetime) -> None:
        """Remember an organization whose rows are to go."""
        await change.connection.execute(
            "INSERT INTO deleted_orgs (org_id, deleted_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            org_id,
            at,
        )

    async def forget_deleted(self, parts: int, before: datetime) -> int:
        """Remove raw events and windows of the organizations deleted before a time.

        Both go together, so that whatever stays agrees. Identities stay for their days: they tell
        of nothing but ids, and a repeat must not become a first acceptance. Numbers of deltas are
        never used again, and who applies deltas minds no gaps.

        Returns:
            The organizations whose time has not come yet.
        """
        async with self._db.change(call=None) as change:
            connection = change.connection
            orgs = await connection.fetchval(
                "SELECT array_agg(org_id) FROM deleted_orgs WHERE deleted_at < $1", before
            )
            for table in (EVENTS, "deltas") if orgs else ():
                for part in range(parts):
                    await connection.execute(
                        f"DELETE FROM {table} WHERE part = $1 AND org_id = ANY($2)", part, orgs
                    )
            await connection.execute("DELETE FROM deleted_orgs WHERE org_id = ANY($1)", orgs)
            left: int = await connection.fetchval("SELECT count(*) FROM deleted_orgs")
            return left


async def _paced(records: Iterator[tuple[object, ...]]) -> AsyncIterator[tuple[object, ...]]:
    """The records, with pauses in which the event loop turns to others."""
    for count, record in enumerate(records):
        if count % _PACE == _PACE - 1:
            await asyncio.sleep(0)
        yield record


def _uuid(value: bytes | None) -> UUID | None:
    """The same as ``UUID(bytes=value)``, ten times as fast."""
    return pgproto.UUID(value) if value is not None else None


def _id_records(part: int, accepted: Iterable[Arrived]) -> Iterator[tuple[object, ...]]:
    for row, received_at, _ in accepted:
        yield part, _uuid(row.org_id), _uuid(row.event_id), moment(received_at), row.digest


def _event_records(part: int, settled: Settled) -> Iterator[tuple[object, ...]]:
    for arrived, priced in zip(settled.accepted, settled.priced, strict=True):
        row, cost = arrived.row, priced.cost
        plain: Sequence[object] = row
        nanos = _UNPRICED if cost is None else (*cost, cost.total)
        yield (
            part,
            moment(arrived.received_at),
            _uuid(arrived.api_key_id),
            _uuid(row.org_id),
            _uuid(row.event_id),
            _uuid(row.team_id),
            _uuid(row.project_id),
            _uuid(row.user_id),
            moment(row.at),
            row.event_type,
            *plain[_PLAIN],
            row.metadata.decode() if row.metadata is not None else None,
            *nanos,
            priced.price_version,
        )


def _delta_records(part: int, last: int, deltas: Sequence[Delta]) -> Iterator[tuple[object, ...]]:
    for seq, delta in enumerate(deltas, last + 1):
        key = delta.key
        yield (
            part,
            seq,
            _uuid(key.org_id),
            moment(key.minute * MINUTE_US),
            _uuid(key.project_id),
            _uuid(key.team_id),
            _uuid(key.user_id),
            _uuid(key.api_key_id),
            key.model,
            key.provider,
            key.event_type,
            key.status,
            key.mcp_server,
            key.tool,
            *delta.sums,
            delta.bins,
            delta.counts,
        )


def days_around(now: datetime, ahead: int = 2) -> list[date]:
    """Today and the days that come, in UTC."""
    return [(now + timedelta(days=n)).date() for n in range(ahead + 1)]
