"""Sessions: deltas as batches add them, and rows that are added up of those."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import numpy as np
from asyncpg.pgproto import pgproto

from common.columns import column_of
from common.database import Connection, Database, Scope
from common.database.copying import CopyRows, copy_rows
from common.threads import off_loop
from services.usage_tracker.domain.islands import DAY_US, compacted, key_table, some_ids
from services.usage_tracker.domain.judging import microseconds, moment
from services.usage_tracker.domain.ranges import LATEST_US
from services.usage_tracker.domain.records import windows_partition
from services.usage_tracker.domain.sessions import (
    DELTA,
    SUMS,
    OfOrg,
    SessionDeltas,
    Used,
    has_project,
    has_user,
    put_ids,
    together,
    unpacked,
)

_DELTA_COLUMNS = ("part", "seq", "org_id", "deltas", "data")
_ROW = (
    *("first_at", "last_at", *SUMS, "project_id", "user_id", "session_id"),
    *Used._fields,
)
_COLUMNS = ("part", "org_id", "key", *_ROW)
_SELECTED = ", ".join(f"s.{name}" for name in _ROW)
# Held by all who read rows of an organization, and alone by who has moved some.
_MOVED = "hashtextextended('mindweave.sessions ' || $1::uuid::text, 0)"
# Into how many parts the rows of organizations are spread.
_PARTS = 1024
# Deltas that a transaction moves.
_STEP = 200_000
# Rows that go at once.
_FORGOTTEN = 10_000
# Seconds.
_COUNTED_EVERY = 60.0
# More of them take milliseconds.
_MANY = 500


async def append_session_deltas(
    connection: Connection, part: int, seq: int, found: Sequence[OfOrg]
) -> None:
    """Append what a batch adds, in its transaction; the part's writer is the caller.

    Args:
        connection: of the batch.
        part: its part.
        seq: the number of the last delta of windows that it added.
        found: what it adds to the sessions of each organization.
    """
    if not found:
        return
    every = np.arange(len(found))
    rows = CopyRows(len(found), len(_DELTA_COLUMNS)).int2(part).int8(np.full(len(found), seq))
    rows.raw(np.frombuffer(b"".join(one.org_id for one in found), np.uint8).reshape(-1, 16))
    rows.coded(([one.deltas.to_bytes(4) for one in found], every))
    rows.coded(([one.data for one in found], every))
    await copy_rows(connection, "session_deltas", _DELTA_COLUMNS, rows.finish())


async def forget_sessions(connection: Connection, org_id: UUID) -> bool:
    """Remove some of what a deleted organization has left; returns whether there was any."""
    parts = await connection.fetch("SELECT part FROM parts")
    places = [("session_deltas", row["part"]) for row in parts]
    places.append(("sessions", windows_partition(org_id, _PARTS)))
    for table, part in places:
        done = await connection.execute(
            f"""
            DELETE FROM {table} WHERE part = $1 AND org_id = $2 AND ctid = ANY (ARRAY(
                SELECT ctid FROM {table} WHERE part = $1 AND org_id = $2 LIMIT $3))
            """,
            part,
            org_id,
            _FORGOTTEN,
        )
        if done != "DELETE 0":
            return True
    return False


async def has_sessions(connection: Connection, org_id: UUID) -> bool:
    """Whether the organization has any."""
    # First where they leave: what is moved in between is in the other place by then.
    if await connection.fetch(
        """
        SELECT 1 FROM session_deltas
        WHERE part IN (SELECT part FROM parts) AND org_id = $1 LIMIT 1
        """,
        org_id,
    ):
        return True
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM sessions WHERE part = $1 AND org_id = $2)",
        windows_partition(org_id, _PARTS),
        org_id,
    )
    return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """Sessions of which project and which user; None is any."""

    project_id: UUID | None
    user_id: UUID | None


class SessionView:
    """The sessions of one organization as they were at one moment.

    Attributes:
        org_id: whose.
        recent: the deltas that are not rows yet, of all times.
    """

    def __init__(self, connection: Connection, org_id: UUID, recent: SessionDeltas) -> None:
        self._connection = connection
        self.org_id = org_id
        self._whose = windows_partition(org_id, _PARTS), org_id
        self.recent = recent

    async def between(
        self, start_us: int, end_us: int, named: tuple[int, int], wanted: Wanted, most: int | None
    ) -> SessionDeltas | None:
        """The rows that reach into a time (microseconds since 1970; the end is out).

        Args:
            start_us: included.
            end_us: excluded.
            named: of those that have a name only the ones that begin in this time.
            wanted: whose; rows with a name are of any user, since one user may begin a session
                and another one go on with it.
            most: None where there are more rows than so many; any number where it is None.
        """
        start, end = _moment(start_us), _moment(end_us)
        rows = await self._connection.fetch(
            f"""
            SELECT {_SELECTED} FROM sessions AS s
            WHERE part = $1 AND org_id = $2 AND first_at >= $3 AND first_at < $5
                AND last_at >= $4
                AND (session_id IS NULL OR (first_at >= $6 AND first_at < $7))
                AND ($8::uuid IS NULL OR project_id = $8)
                AND ($9::uuid IS NULL OR session_id IS NOT NULL OR user_id = $9)
            LIMIT $10
            """,
            *self._whose,
            # No row reaches beyond a day.
            _moment(start_us - start_us % DAY_US),
            start,
            end,
            *map(_moment, named),
            wanted.project_id,
            wanted.user_id,
            None if most is None else most + 1,
        )
        if most is not None and len(rows) > most:
            return None
        return await off_loop(len(rows) > _MANY, _deltas, rows)

    async def of_keys(self, keys: Collection[UUID]) -> SessionDeltas:
        """All rows of what may be one session each."""
        rows = await self._connection.fetch(
            f"""
            SELECT {_SELECTED} FROM sessions AS s
            WHERE part = $1 AND org_id = $2 AND key = ANY ($3)
            """,
            *self._whose,
            list(keys),
        )
        return await off_loop(len(rows) > _MANY, _deltas, rows)


class SessionStore:
    """What is asked of an organization's sessions, and how their deltas become rows.

    Args:
        db: of the ledger.
        gap: events of a user without ``session_id`` that are so far apart are two sessions.
    """

    def __init__(self, db: Database, gap: timedelta) -> None:
        self._db = db
        self._count_at = 0.0
        self.gap_us = gap // timedelta(microseconds=1)

    @asynccontextmanager
    async def view(self, org_id: UUID) -> AsyncIterator[SessionView]:
        """All that was counted until now."""
        async with self._db.read(Scope((org_id,))) as connection:
            await connection.execute(f"SELECT pg_advisory_xact_lock_shared({_MOVED})", org_id)
            rows = await connection.fetch(
                """
                SELECT deltas, data FROM session_deltas
                WHERE part IN (SELECT part FROM parts) AND org_id = $1
                """,
                org_id,
            )
            many = sum(row["deltas"] for row in rows) > _MANY
            recent = await off_loop(many, unpacked, [row["data"] for row in rows])
            yield SessionView(connection, org_id, recent)

    async def due(self, older_than: timedelta, more_than: int) -> list[UUID]:
        """The organizations with deltas of such an age, or with more than so many; oldest first.

        All deltas are counted once a minute only, as long as no organization has too many.
        """
        now = asyncio.get_running_loop().time()
        async with self._db.session() as connection:
            due = await connection.fetch(
                """
                SELECT org_id FROM session_deltas WHERE appended_at < now() - $1::interval
                GROUP BY org_id ORDER BY min(appended_at)
                """,
                older_than,
            )
            if now >= self._count_at:
                large = await connection.fetch(
                    """
                    SELECT org_id FROM session_deltas GROUP BY org_id
                    HAVING sum(deltas) > $1 ORDER BY min(appended_at)
                    """,
                    more_than,
                )
                if not large:
                    self._count_at = now + _COUNTED_EVERY
                due += large
        return list(dict.fromkeys(row["org_id"] for row in due))

    async def compact(self, org_id: UUID) -> int:
        """Add some deltas of an organization to its rows; returns how many, 0 where none is left.

        Not of one whose rows are being removed: they would move out of the way. One process at a
        time does it.
        """
        async with self._db.session() as connection, connection.transaction():
            await connection.execute("SET LOCAL jit = off")
            # What begins to remove rows waits until these are in their place.
            await connection.execute("SELECT FROM layout FOR SHARE")
            if not await connection.fetchval(
                """
                SELECT pg_try_advisory_xact_lock(hashtextextended('mindweave.sessions', 0))
                    AND NOT EXISTS (SELECT FROM deleted_orgs WHERE org_id = $1)
                """,
                org_id,
            ):
                return 0
            taken: list[asyncpg.Record] = []
            for part, last in (await self._oldest(connection, org_id)).items():
                taken += await connection.fetch(
                    """
                    DELETE FROM session_deltas WHERE part = $1 AND org_id = $2 AND seq <= $3
                    RETURNING deltas, data
                    """,
                    part,
                    org_id,
                    last,
                )
            if not taken:
                return 0
            more = await off_loop(True, unpacked, [row["data"] for row in taken])
            await self._add(connection, org_id, more)
            # Where rows lie on several nodes, one commits after another: nobody reads meanwhile.
            await connection.execute(f"SELECT pg_advisory_xact_lock({_MOVED})", org_id)
            return sum(row["deltas"] for row in taken)

    async def _oldest(self, connection: Connection, org_id: UUID) -> dict[int, int]:
        """The last number, by part, of about so many deltas as one transaction moves."""
        waiting = await connection.fetch(
            """
            SELECT part, seq, deltas FROM session_deltas
            WHERE part IN (SELECT part FROM parts) AND org_id = $1 ORDER BY part, seq
            """,
            org_id,
        )
        before, last = 0, dict[int, int]()
        for row in waiting:
            if before < _STEP:
                last[row["part"]] = row["seq"]
            before += row["deltas"]
        return last

    async def _add(self, connection: Connection, org_id: UUID, more: SessionDeltas) -> None:
        more = await off_loop(True, compacted, more, self.gap_us)
        keys, days = await off_loop(True, _touched, org_id, more)
        part = windows_partition(org_id, _PARTS)
        before = await connection.fetch(
            f"""
            DELETE FROM sessions AS s
            USING unnest($3::uuid[], $4::timestamptz[], $5::timestamptz[]) AS day (key, start, stop)
            WHERE s.part = $1 AND s.org_id = $2 AND s.key = day.key
                AND s.first_at >= day.start AND s.first_at < day.stop
            RETURNING {_SELECTED}
            """,
            part,
            org_id,
            keys,
            days,
            [day + timedelta(days=1) for day in days],
        )
        rows = await off_loop(True, _rows, part, org_id, before, more, self.gap_us)
        await copy_rows(connection, "sessions", _COLUMNS, rows)


def _touched(org_id: UUID, deltas: SessionDeltas) -> tuple[list[pgproto.UUID], list[datetime]]:
    """The keys and days of deltas, each pair of them once."""
    table, codes = key_table(org_id, deltas)
    days, places = np.unique(deltas.rows["first_at"] // DAY_US, return_inverse=True)
    of_keys, of_days = np.divmod(np.unique(codes * len(days) + places), len(days))
    ids = [pgproto.UUID(key.tobytes()) for key in table]
    begins = [moment(int(day) * DAY_US) for day in days]
    return [ids[n] for n in of_keys.tolist()], [begins[n] for n in of_days.tolist()]


def _rows(
    part: int, org_id: UUID, before: Sequence[asyncpg.Record], more: SessionDeltas, gap_us: int
) -> bytes:
    """Rows, for ``_COLUMNS``, of those that there were and of deltas that are compacted."""
    deltas = compacted(together([_deltas(before), more]), gap_us) if before else more
    rows = deltas.rows
    table, codes = key_table(org_id, deltas)
    made = CopyRows(len(rows), len(_COLUMNS)).int2(part)
    made.coded(([org_id.bytes], np.zeros(len(rows), np.int64))).raw(table[codes])
    made.timestamp(rows["first_at"]).timestamp(rows["last_at"])
    for name in SUMS:
        made.int8(rows[name])
    for name, there in (("project_id", has_project(rows)), ("user_id", has_user(rows))):
        made.coded((some_ids(rows[name], there), np.arange(len(rows))))
    made.coded((deltas.session_id.encoded(), deltas.session_id.codes))
    for place, _ in enumerate(Used._fields):
        texts = [used[place] and used[place].encode() for used in deltas.used.values]
        made.coded((texts, deltas.used.codes))
    return made.finish()


def _deltas(found: Sequence[asyncpg.Record]) -> SessionDeltas:
    rows = np.zeros(len(found), DELTA)
    for name in ("first_at", "last_at"):
        rows[name] = [microseconds(row[name]) for row in found]
    for name in SUMS:
        rows[name] = [row[name] for row in found]
    for name in ("project_id", "user_id"):
        put_ids(rows, name, column_of([row[name] and row[name].bytes for row in found]))
    return SessionDeltas(
        rows,
        column_of([row["session_id"] for row in found]),
        column_of([Used(*(row[name] for name in Used._fields)) for row in found]),
    )


def _moment(us: int) -> datetime:
    """A time within the calendar of the database."""
    return moment(min(max(us, 0), LATEST_US))
