"""The layout, and what a change of it touches: places, owners, and the part of each row."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import asyncpg

from common.database import Connection, Database
from common.database.connection import using
from common.errors import Conflict
from common.events.ledger import LEASE
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.records import EVENTS_TOPIC, events_partition
from services.usage_tracker.store.ledger import (
    EVENTS,
    FORGETTING,
    IDS,
    parts_with_rows,
)
from services.usage_tracker.store.repricing import ADJUSTMENTS, forget_orders
from services.usage_tracker.store.walks import Range, Tid, Walk

# Owns the partitions while the layout is changed, and those that there are no more.
_NOBODY = "repartitioning"
_LAYOUT = "partitions, generation, state, wanted"
_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('mindweave.repartitioning', 0))"
# Blocks of one step: some tens of thousands of identities.
_REHASHING = Walk("rehash", 256)


class LayoutStore:
    """Times are the database's own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def only_changer(self) -> Connection | None:
        """A connection that keeps others from changing it while open; None where one does that."""
        connection = await self._db.connect()
        if await connection.fetchval(_LOCK):
            return connection
        await connection.close()
        return None

    async def check(self, only: Connection, wanted: int) -> None:
        """See that this process is still the one that changes it, to so many partitions.

        Args:
            only: what ``only_changer`` gave.
            wanted: partitions, of a change from which there is no way back.

        Raises:
            Conflict: the change was finished by another.
            Unavailable: the connection was lost, so that another may be at it.
        """
        with using(only):
            row = await only.fetchrow(f"SELECT {_LAYOUT} FROM layout")
        found = None if row is None else _layout(row)
        if found is None or (found.state, found.wanted) != (State.REHASHING, wanted):
            raise Conflict("Another process has finished the change of the number of partitions.")

    async def read(self) -> Layout | None:
        """The layout; None where it was never written."""
        async with self._db.session() as connection:
            return await self.read_in(connection)

    async def read_in(self, connection: Connection) -> Layout | None:
        """As ``read``, over the caller's connection."""
        row = await connection.fetchrow(f"SELECT {_LAYOUT} FROM layout")
        return None if row is None else _layout(row)

    async def begin(self, partitions: int) -> Layout:
        """As ``read``; written with so many partitions where it never was."""
        async with self._db.session() as connection:
            (row,) = await connection.fetch(
                f"""
                INSERT INTO layout (partitions) VALUES ($1)
                ON CONFLICT (one) DO UPDATE SET one = true RETURNING {_LAYOUT}
                """,
                partitions,
            )
        return _layout(row)

    async def drain(self, wanted: int) -> None:
        """Let no more events in, for a change to so many partitions."""
        async with self._db.session() as connection:
            await connection.execute(
                """
                UPDATE layout SET state = 'draining', wanted = $1
                WHERE state = 'open'
                """,
                wanted,
            )

    async def call_off(self) -> None:
        """Let events in again, as before."""
        async with self._db.session() as connection:
            await connection.execute(
                """
                UPDATE layout SET state = 'open', wanted = NULL
                WHERE state = 'draining'
                """
            )

    async def places(self, partitions: int) -> Mapping[int, str | None]:
        """The place of the last record applied, by partition; None before the first."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                "SELECT part, token FROM offsets WHERE topic = $1 AND part < $2",
                EVENTS_TOPIC,
                partitions,
            )
        return dict.fromkeys(range(partitions)) | {row["part"]: row["token"] for row in rows}

    async def unsent(self) -> int:
        """Deltas of all parts that were not sent on."""
        async with self._db.session() as connection:
            return await _unsent(connection)

    async def fence(self, partitions: int) -> bool:
        """Take all partitions, of so many before or after; nobody commits to them any more.

        From here the change has to be finished. False, with nothing changed, where a batch that
        was under way has added deltas, which its owner still has to send on.
        """
        async with self._db.session() as connection, connection.transaction():
            await connection.execute(
                """
                INSERT INTO offsets (topic, part)
                SELECT $1, part FROM generate_series(0, $2 - 1) AS part ON CONFLICT DO NOTHING
                """,
                EVENTS_TOPIC,
                partitions,
            )
            known = await connection.fetch(
                "SELECT part FROM offsets WHERE topic = $1 ORDER BY part", EVENTS_TOPIC
            )
            rows: list[asyncpg.Record] = []
            for row in known:
                rows += await connection.fetch(
                    """
                    SELECT owner, lease_until FROM offsets WHERE topic = $1 AND part = $2
                    FOR UPDATE
                    """,
                    EVENTS_TOPIC,
                    row["part"],
                )
            if await _unsent(connection):
                return False
            leases = [r["lease_until"] for r in rows if r["lease_until"] and r["owner"] != _NOBODY]
            await connection.execute(
                """
                UPDATE offsets SET epoch = epoch + 1, owner = $2, lease_until = 'infinity'
                WHERE topic = $1
                """,
                EVENTS_TOPIC,
                _NOBODY,
            )
            await connection.execute(
                "UPDATE layout SET state = 'rehashing', fenced_until = $1",
                max(leases, default=None),
            )
            await _REHASHING.begin(
                connection,
                await parts_with_rows(connection),
                dict.fromkeys((EVENTS, IDS, ADJUSTMENTS)),
            )
            return True

    async def seconds_of_leases(self) -> float:
        """Until even one that does not know it yet has seen that it lost its partitions.

        At most two leases: what ends later was given before the database's clock was set back.
        """
        async with self._db.session() as connection:
            seconds: float | None = await connection.fetchval(
                """
                SELECT extract(epoch FROM
                    least(fenced_until - clock_timestamp(), 2 * $1::interval))::float8
                FROM layout WHERE fenced_until IS NOT NULL
                """,
                timedelta(seconds=LEASE),
            )
        return max(0.0, seconds or 0.0)

    async def forget_places(self, births: Sequence[str]) -> None:
        """Begin with the first record of partitions with these births, and no other ones."""
        async with self._db.session() as connection, connection.transaction():
            rows = await connection.fetch("SELECT part FROM offsets WHERE topic = $1", EVENTS_TOPIC)
            for part in sorted(row["part"] for row in rows):
                await connection.execute(
                    """
                    UPDATE offsets SET token = NULL, epoch = epoch + 1, updated_at = now(),
                        birth = $3
                    WHERE topic = $1 AND part = $2
                    """,
                    EVENTS_TOPIC,
                    part,
                    births[part] if part < len(births) else None,
                )

    async def rehash_some(self, partitions: int) -> int:
        """Move the rows of one range to their parts; returns the blocks that are left."""
        async with self._db.session() as connection, connection.transaction():
            place = await _REHASHING.next(connection)
            if place is None:
                return 0
            rows = await connection.fetch(
                f"SELECT ctid, part, org_id, event_id FROM {place.relation} WHERE {place.where}",
                *place.arguments,
            )
            moved = await asyncio.to_thread(_moved, rows, partitions)
            if moved:
                await _move(connection, place, moved)
            return await _REHASHING.left(connection)

    async def open(self, partitions: int) -> None:
        """Let the partitions be taken and events in; the change is done."""
        async with self._db.session() as connection, connection.transaction():
            await connection.execute(
                """
                UPDATE layout SET partitions = $1, generation = generation + 1, state = 'open',
                    wanted = NULL, fenced_until = NULL
                WHERE state = 'rehashing' AND wanted = $1
                """,
                partitions,
            )
            await connection.execute(
                "UPDATE offsets SET lease_until = now() WHERE topic = $1 AND part < $2",
                EVENTS_TOPIC,
                partitions,
            )
            await _REHASHING.forget(connection)
            # Rows are not where they were: these walks begin anew.
            await FORGETTING.forget(connection)
            await forget_orders(connection)
            await connection.execute("UPDATE deleted_orgs SET walking = false WHERE walking")


def _layout(row: asyncpg.Record) -> Layout:
    return Layout(row["partitions"], row["generation"], State(row["state"]), row["wanted"])


async def _unsent(connection: Connection) -> int:
    unsent: int = await connection.fetchval(
        """
        SELECT coalesce(sum(p.last_seq - coalesce(r.seq, 0)), 0)::bigint
        FROM parts AS p LEFT JOIN relays AS r USING (part)
        """
    )
    return unsent


async def _move(connection: Connection, place: Range, moved: Mapping[Tid, int]) -> None:
    """Write rows of a range again with other parts: where rows lie by part, none can change it."""
    columns: str = await connection.fetchval(
        """
        SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
        WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
            AND attname <> 'part'
        """,
        place.relation,
    )
    n = len(place.arguments) + 1
    await connection.execute(
        f"""
        INSERT INTO {place.relation} (part, {columns})
        SELECT moved.new_part, {columns}
        FROM (SELECT ctid AS place, * FROM {place.relation} WHERE {place.where}) AS r
        JOIN unnest(${n}::tid[], ${n + 1}::smallint[]) AS moved (place, new_part) USING (place)
        """,
        *place.arguments,
        list(moved),
        list(moved.values()),
    )
    await connection.execute(
        f"DELETE FROM {place.relation} WHERE {place.where} AND ctid = ANY (${n}::tid[])",
        *place.arguments,
        list(moved),
    )


def _moved(rows: Sequence[asyncpg.Record], partitions: int) -> dict[Tid, int]:
    """The new part by the place of each row that has another one now."""
    found = {}
    for row in rows:
        new = events_partition(row["org_id"].bytes, row["event_id"].bytes, partitions)
        if new != row["part"]:
            found[row["ctid"]] = new
    return found
