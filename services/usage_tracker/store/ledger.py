"""What usage comes to: raw events, identities, deltas of windows, and how far they were sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from uuid import UUID

import numpy as np
from asyncpg.pgproto import pgproto
from numpy.typing import NDArray

from common.columns import Integers
from common.database import Change, Connection, Database
from common.database.connection import using
from common.database.copying import EPOCH_US, copy_rows, read_rows
from common.threads import off_loop
from common.timeseries import (
    drop_partitions,
    ensure_partitions,
    ensure_partitions_apart,
)
from services.usage_tracker.domain.blocks import Numbered
from services.usage_tracker.domain.columns import ID_BYTES, Batch, identity_hashes
from services.usage_tracker.domain.identities import Hashes, Identities
from services.usage_tracker.domain.judging import microseconds, moment
from services.usage_tracker.domain.pricing import DAY_US
from services.usage_tracker.domain.settling import First, Identity, Settled
from services.usage_tracker.domain.windows import Deltas
from services.usage_tracker.store.blocks import hold, keep
from services.usage_tracker.store.prices import PriceStore, catch_up_unpriced, note_unpriced
from services.usage_tracker.store.repricing import ADJUSTMENTS, drop_finished
from services.usage_tracker.store.rows import EVENT_COLUMNS, ID_COLUMNS, event_rows, id_rows
from services.usage_tracker.store.sessions import append_session_deltas, forget_sessions
from services.usage_tracker.store.walks import Walk

EVENTS = "events"
IDS = "event_ids"
# The latest acceptance of each identity, by arrays of both its ids, in a part from a time on.
FIRST_ACCEPTANCES = """
    SELECT wanted.n, known.digest, known.received_at
    FROM unnest($2::uuid[], $3::uuid[]) WITH ORDINALITY AS wanted (org_id, event_id, n)
    CROSS JOIN LATERAL (
        SELECT i.digest, i.received_at FROM event_ids AS i
        WHERE uuid_hash_extended(i.event_id, 0) = uuid_hash_extended(wanted.event_id, 0)
            AND i.event_id = wanted.event_id AND i.org_id = wanted.org_id
            AND i.part = $1 AND i.received_at >= $4
        ORDER BY i.received_at DESC LIMIT 1
    ) AS known
"""
# More events than these take milliseconds wherever they are looked at.
MANY_EVENTS = 500
# Blocks of one step, which one statement reads in tens of milliseconds.
FORGETTING = Walk("forget", 2048)

_IDENTITY = np.dtype(
    [
        *(("org_id_length", ">i4"), ("org_id", "V16"), ("event_id_length", ">i4")),
        *(("event_id", "V16"), ("received_at_length", ">i4"), ("received_at", ">i8")),
    ]
)


class UsageStore:
    """Raw events, identities and deltas of windows, each row with the part of its only writer."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ready_days: frozenset[date] = frozenset()
        self._one_at_a_time = asyncio.Lock()

    async def first_acceptances(
        self,
        connection: Connection,
        part: int,
        batch: Batch,
        asked: Sequence[int],
        since: datetime,
    ) -> dict[Identity, First]:
        """The latest acceptance, not before ``since``, of those asked for that were accepted."""
        orgs = [batch.coded["org_id"].at(index) for index in asked]
        events = [batch.ids["event_id"][index].tobytes() for index in asked]
        # So many probes look costly enough to the planner to compile them anew for each batch.
        await connection.execute("SET LOCAL jit = off")
        rows = await connection.fetch(
            FIRST_ACCEPTANCES,
            part,
            list(map(pgproto.UUID, orgs)),
            list(map(pgproto.UUID, events)),
            since,
        )
        return {
            (orgs[row["n"] - 1], events[row["n"] - 1]): First(
                row["digest"], microseconds(row["received_at"])
            )
            for row in rows
        }

    async def identities(self, part: int) -> Identities:
        """All identities of a part that are committed; the caller is its only writer.

        Parts are read one after the other, over a connection beside the pool: it may take minutes,
        in which leases are renewed.
        """
        hashes: list[Hashes] = [np.zeros(0, np.uint64)]
        received_at: list[Integers] = [np.zeros(0, np.int64)]

        async def take(rows: NDArray[np.void]) -> None:
            hashes.append(await asyncio.to_thread(_hashes, rows))
            received_at.append(rows["received_at"].astype(np.int64) + EPOCH_US)

        async with self._one_at_a_time, self._own_connection() as connection:
            await read_rows(
                connection,
                "SELECT org_id, event_id, received_at FROM event_ids WHERE part = $1",
                part,
                row=_IDENTITY,
                take=take,
            )
        found = Identities()
        await asyncio.to_thread(found.add, np.concatenate(hashes), np.concatenate(received_at))
        return found

    @asynccontextmanager
    async def _own_connection(self) -> AsyncIterator[Connection]:
        connection = await self._db.connect()
        try:
            with using(connection):
                yield connection
        finally:
            connection.terminate()

    async def append(self, connection: Connection, part: int, settled: Settled) -> int:
        """Append a settled batch in the caller's transaction; the part's writer is the caller.

        Returns:
            The number of its last delta.
        """
        long = settled.accepted.count > MANY_EVENTS
        ids, events = await off_loop(long, _id_and_event_rows, part, settled)
        days = _days(settled.accepted.numbers["received_at"]) - self._ready_days
        for table in (EVENTS, IDS):
            await ensure_partitions_apart(self._db, connection, table, days)
        await copy_rows(connection, IDS, ID_COLUMNS, ids)
        await copy_rows(connection, EVENTS, EVENT_COLUMNS, events)
        await note_unpriced(connection, part, settled.unpriced)
        last = await self.append_deltas(
            connection,
            part,
            settled.deltas,
            duplicates=settled.duplicates,
            conflicts=settled.conflict_count,
        )
        await append_session_deltas(connection, part, last, settled.sessions)
        return last

    async def append_deltas(
        self,
        connection: Connection,
        part: int,
        deltas: Deltas,
        *,
        duplicates: int = 0,
        conflicts: int = 0,
        reason: str | None = None,
    ) -> int:
        """Append deltas in the caller's transaction; the part's writer is the caller.

        Returns:
            The number of the last one.
        """
        sql = """
            INSERT INTO parts AS p (part, last_seq, duplicates, conflicts, unpriced_seq)
            VALUES ($1, $2, $3, $4, $2)
            ON CONFLICT (part) DO UPDATE SET last_seq = p.last_seq + excluded.last_seq,
                duplicates = p.duplicates + excluded.duplicates,
                conflicts = p.conflicts + excluded.conflicts,
                unpriced_seq = p.unpriced_seq + excluded.last_seq
            WHERE p.unpriced_seq = p.last_seq
            RETURNING last_seq
            """
        values = (part, len(deltas), duplicates, conflicts)
        found: int | None = await connection.fetchval(sql, *values)
        if found is None:
            await catch_up_unpriced(connection, part)
            found = await connection.fetchval(sql, *values)
        last = int(found or 0)
        await keep(connection, part, Numbered(last - len(deltas) + 1, deltas, reason))
        return last

    async def last_numbers(self) -> dict[int, int]:
        """By part, the number of its last delta."""
        async with self._db.session() as connection:
            rows = await connection.fetch("SELECT part, last_seq FROM parts")
        return {row["part"]: row["last_seq"] for row in rows}

    async def repeats(self) -> dict[str, int]:
        """Events that came again, by what they were: ``duplicate`` or ``conflict``."""
        async with self._db.session() as connection:
            row = await connection.fetchrow(
                """
                SELECT coalesce(sum(duplicates), 0)::bigint AS duplicate,
                       coalesce(sum(conflicts), 0)::bigint AS conflict
                FROM parts
                """
            )
        return dict(row or {})

    async def sent_up_to(self, part: int) -> int:
        """The number of the last delta that was sent on; 0 while none was."""
        async with self._db.session() as connection:
            found: int | None = await connection.fetchval(
                "SELECT seq FROM relays WHERE part = $1", part
            )
        return found or 0

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
            # Each part by itself: what keeps one from being noted keeps no other.
            for part, watermark in watermarks.items():
                await connection.execute(
                    """
                    INSERT INTO relays AS r (part, watermark) VALUES ($1, $2)
                    ON CONFLICT (part) DO UPDATE
                    SET watermark = greatest(r.watermark, excluded.watermark)
                    """,
                    part,
                    watermark,
                )

    async def least_watermark(self, parts: int) -> datetime | None:
        """Up to when everything accepted was counted and sent on, in all of so many parts.

        Never later than the database's own time: the clock of who noted it may be ahead.
        """
        async with self._db.session() as connection:
            found: datetime | None = await connection.fetchval(
                """
                SELECT CASE WHEN count(watermark) = $1 THEN least(min(watermark), now()) END
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
            for table in (EVENTS, IDS, ADJUSTMENTS):
                await ensure_partitions(connection, table, wanted)
        self._ready_days = wanted

    async def expire(self, events_before: date, ids_before: date) -> list[str]:
        """Drop the days before; returns the names of their partitions."""
        async with self._db.session() as connection:
            dropped = await drop_partitions(connection, EVENTS, events_before)
            dropped += await drop_partitions(connection, ADJUSTMENTS, events_before)
            await drop_finished(connection, events_before)
            return dropped + await drop_partitions(connection, IDS, ids_before)

    async def note_deleted(self, change: Change, org_id: UUID, at: datetime) -> None:
        """Remember an organization whose rows are to go; its prices go at once."""
        await PriceStore(change.connection).delete_all(org_id)
        await change.connection.execute(
            "INSERT INTO deleted_orgs (org_id, deleted_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            org_id,
            at,
        )

    async def begin_forgetting(self, before: datetime) -> None:
        """Begin to remove what organizations left that were deleted before a time.

        Nothing, where the last such walk is not over or there is none to forget.
        """
        async with self._db.session() as connection, connection.transaction():
            # One that begins at a time, and none while the layout is being changed.
            await connection.execute("SELECT FROM layout FOR UPDATE")
            chosen = await connection.fetch(
                """
                UPDATE deleted_orgs SET walking = true
                WHERE deleted_at < $1 AND NOT EXISTS (SELECT FROM deleted_orgs WHERE walking)
                RETURNING 1
                """,
                before,
            )
            if chosen:
                parts = await parts_with_rows(connection)
                await hold(connection, parts)
                await connection.execute("UPDATE delta_blocks SET forgetting = true")
                tables = (EVENTS, ADJUSTMENTS, "deltas", "unpriced")
                await FORGETTING.begin(connection, parts, dict.fromkeys(tables))

    async def forget_some(self) -> bool:
        """Remove events, windows and sessions of the organizations that go, from a range of rows.

        Identities stay for their days: they tell of nothing but ids, and a repeat must not become a
        first acceptance. Numbers of deltas are never used again, and who applies deltas minds no
        gaps.

        Returns:
            Whether there may be more to do.
        """
        async with self._db.session() as connection, connection.transaction():
            place = await FORGETTING.next(connection)
            if place is None:
                return await self._end_forgetting(connection)
            gone = await connection.fetch("SELECT org_id FROM deleted_orgs WHERE walking")
            await connection.execute(
                f"""
                DELETE FROM {place.relation} WHERE {place.where}
                    AND org_id = ANY (${len(place.arguments) + 1}::uuid[])
                """,
                *place.arguments,
                [row["org_id"] for row in gone],
            )
            return True

    async def _end_forgetting(self, connection: Connection) -> bool:
        """Let the organizations be forgotten where nothing of theirs is left; else go on."""
        gone = await connection.fetch("SELECT org_id FROM deleted_orgs WHERE walking")
        if any([await forget_sessions(connection, row["org_id"]) for row in gone]):
            return True
        if await connection.fetchval("SELECT count(*) FROM delta_blocks WHERE forgetting"):
            return False
        await connection.execute(
            """
            DELETE FROM deleted_orgs WHERE walking AND NOT EXISTS (
                SELECT FROM walks WHERE name = $1 AND next_block < blocks
            )
            """,
            FORGETTING.name,
        )
        return False

    async def to_forget(self) -> int:
        """Deleted organizations whose rows are still there."""
        async with self._db.session() as connection:
            left: int = await connection.fetchval("SELECT count(*) FROM deleted_orgs")
        return left


async def parts_with_rows(connection: Connection) -> list[int]:
    """All parts that ever had rows."""
    rows = await connection.fetch("SELECT part FROM parts ORDER BY part")
    return [row["part"] for row in rows]


def _days(microseconds_: Integers) -> set[date]:
    return {moment(int(day) * DAY_US).date() for day in np.unique(microseconds_ // DAY_US)}


def _id_and_event_rows(part: int, settled: Settled) -> tuple[bytes, bytes]:
    return id_rows(part, settled.accepted), event_rows(part, settled)


def _hashes(rows: NDArray[np.void]) -> Hashes:
    org_ids, event_ids = (
        np.frombuffer(rows[name].tobytes(), np.uint8).reshape(-1, ID_BYTES)
        for name in ("org_id", "event_id")
    )
    return identity_hashes(org_ids, event_ids)


def days_around(now: datetime, ahead: int = 2) -> list[date]:
    """Today and the days that come, in UTC."""
    return [(now + timedelta(days=n)).date() for n in range(ahead + 1)]
