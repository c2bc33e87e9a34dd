"""The table ``offsets``: how far each partition is processed, and who may go on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from common.database import Connection, Database

# Seconds after which a dead owner's partitions are taken.
LEASE = 10.0


class Fenced(Exception):
    """The partition has been taken by another, or its place is not where it was thought to be."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A partition that was just taken: its last record's place, its stream's birth, our epoch."""

    place: str | None
    birth: str
    epoch: int


class Offsets:
    """One owner's view of a topic's rows. Times are the database's own.

    A lease that ends later than twice from now was given before its clock was set back, and is
    over, too, unless its owner renews it. What is held until infinity is no lease.
    """

    def __init__(self, db: Database, *, topic: str, owner: str, lease: float) -> None:
        """Args: ``lease`` in seconds."""
        self._db = db
        self._topic = topic
        self._owner = owner
        self._lease = timedelta(seconds=lease)

    async def take(self, part: int, birth: str) -> Holding | None:
        """Begin a new epoch of a partition that is free; None while another holds it.

        Args:
            part: the partition.
            birth: stored where none is, so with the first taking ever.
        """
        async with self._db.session() as connection, connection.transaction():
            await connection.execute(
                """
                INSERT INTO offsets (topic, part, birth) VALUES ($1, $2, $3)
                ON CONFLICT DO NOTHING
                """,
                self._topic,
                part,
                birth,
            )
            row = await connection.fetchrow(
                """
                UPDATE offsets
                SET epoch = epoch + 1, owner = $3, lease_until = now() + $4,
                    birth = coalesce(birth, $5), updated_at = now()
                WHERE topic = $1 AND part = $2
                    AND (
                        lease_until IS NULL OR lease_until <= now() OR owner = $3
                        OR (lease_until > now() + 2 * $4::interval AND lease_until < 'infinity')
                    )
                RETURNING token, birth, epoch
                """,
                self._topic,
                part,
                self._owner,
                self._lease,
                birth,
            )
        return Holding(row["token"], row["birth"], row["epoch"]) if row is not None else None

    async def renew(self, part: int) -> int | None:
        """Prolong the lease of a partition that is still this owner's; its epoch, or None."""
        async with self._db.session() as connection:
            epoch: int | None = await connection.fetchval(
                """
                UPDATE offsets SET lease_until = now() + $4
                WHERE topic = $1 AND part = $2 AND owner = $3
                RETURNING epoch
                """,
                self._topic,
                part,
                self._owner,
                self._lease,
            )
        return epoch

    async def free(self, parts: Collection[int]) -> list[int]:
        """Those of the partitions, in order, that ``take`` would get now."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                """
                SELECT part FROM offsets
                WHERE topic = $1 AND part = ANY ($2::smallint[]) AND lease_until > now()
                    AND owner IS DISTINCT FROM $3
                    AND (lease_until <= now() + 2 * $4::interval OR lease_until = 'infinity')
                """,
                self._topic,
                list(parts),
                self._owner,
                self._lease,
            )
        return sorted(set(parts) - {row["part"] for row in rows})

    async def give_back(self, part: int, epoch: int) -> None:
        """Let others have the partition at once, if it is still held since that epoch began."""
        async with self._db.session() as connection:
            await connection.execute(
                """
                UPDATE offsets SET lease_until = now()
                WHERE topic = $1 AND part = $2 AND owner = $3 AND epoch = $4
                """,
                self._topic,
                part,
                self._owner,
                epoch,
            )

    async def release(self, parts: Collection[int]) -> None:
        """Let others have the partitions at once."""
        async with self._db.session() as connection:
            for part in parts:
                await connection.execute(
                    """
                    UPDATE offsets SET lease_until = now()
                    WHERE topic = $1 AND part = $2 AND owner = $3
                    """,
                    self._topic,
                    part,
                    self._owner,
                )

    async def holds(self, part: int, epoch: int) -> bool:
        """Whether nobody has taken the partition since the epoch began."""
        async with self._db.session() as connection:
            found: bool = await connection.fetchval(
                """
                SELECT EXISTS (
                    SELECT FROM offsets WHERE topic = $1 AND part = $2 AND epoch = $3
                )
                """,
                self._topic,
                part,
                epoch,
            )
        return found

    async def hold(self, connection: Connection, part: int, epoch: int) -> None:
        """Keep the partition from being taken until the caller's transaction ends.

        Raises:
            Fenced: the epoch is over; the transaction must not commit.
        """
        done = await connection.execute(
            """
            UPDATE offsets SET lease_until = now() + $4
            WHERE topic = $1 AND part = $2 AND epoch = $3
            """,
            self._topic,
            part,
            epoch,
            self._lease,
        )
        if done != "UPDATE 1":
            raise Fenced(f"{self._topic}/{part}: epoch {epoch} is over")

    async def advance(
        self, connection: Connection, part: int, epoch: int, old: str | None, new: str
    ) -> None:
        """Move the place from ``old`` to ``new`` in the transaction of the effect.

        Raises:
            Fenced: it is not at ``old``, or the epoch is over; the transaction must not commit.
        """
        done = await connection.execute(
            """
            UPDATE offsets SET token = $5, lease_until = now() + $6, updated_at = now()
            WHERE topic = $1 AND part = $2 AND epoch = $3 AND token IS NOT DISTINCT FROM $4
            """,
            self._topic,
            part,
            epoch,
            old,
            new,
            self._lease,
        )
        if done != "UPDATE 1":
            raise Fenced(f"{self._topic}/{part} is not at {old} in epoch {epoch} any more")
