"""The places of a topic while nobody works on it: read for a backup, set after a restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.database import Connection, Database
from common.events.ledger.offsets import Fenced

# Owns the partitions while databases are joined to the broker.
_REJOIN = "rejoin"


@dataclass(frozen=True, slots=True)
class Stored:
    """A partition's place and the birth of its stream; both None before the first record."""

    place: str | None
    birth: str | None


class Places:
    """A topic's rows of ``offsets``, whoever owns them."""

    def __init__(self, db: Database, topic: str) -> None:
        self.topic = topic
        self._db = db

    async def read(self) -> dict[int, Stored]:
        """By partition."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                "SELECT part, token, birth FROM offsets WHERE topic = $1 ORDER BY part", self.topic
            )
        return {row["part"]: Stored(row["token"], row["birth"]) for row in rows}

    async def hold(self, partitions: int) -> dict[int, int] | None:
        """Take all of so many partitions until ``release``, even where this process is killed.

        Whoever did so before has lost them.

        Returns:
            Our epoch by partition; None, with nothing changed, where somebody has a lease.
        """
        epochs = {}
        async with self._db.session() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                for part in range(partitions):
                    epoch = await self._take(connection, part)
                    if epoch is None:
                        await transaction.rollback()
                        return None
                    epochs[part] = epoch
            except BaseException:
                await transaction.rollback()
                raise
            await transaction.commit()
        return epochs

    async def _take(self, connection: Connection, part: int) -> int | None:
        epoch: int | None = await connection.fetchval(
            """
            INSERT INTO offsets AS o (topic, part, epoch, owner, lease_until)
            VALUES ($1, $2, 1, $3, 'infinity')
            ON CONFLICT (part, topic) DO UPDATE
            SET epoch = o.epoch + 1, owner = excluded.owner, lease_until = excluded.lease_until
            WHERE o.lease_until IS NULL OR o.lease_until <= now() OR o.owner = excluded.owner
            RETURNING epoch
            """,
            self.topic,
            part,
            _REJOIN,
        )
        return epoch

    async def check(self, connection: Connection, part: int, epoch: int) -> None:
        """Keep the partition from being taken until the caller's transaction ends.

        Raises:
            Fenced: the epoch is over; the transaction must not commit.
        """
        done = await connection.execute(
            "UPDATE offsets SET owner = owner WHERE topic = $1 AND part = $2 AND epoch = $3",
            self.topic,
            part,
            epoch,
        )
        self._require_one(done, part, epoch)

    async def put(self, part: int, epoch: int, stored: Stored) -> None:
        """Let whoever takes the partition after us begin there.

        Raises:
            Fenced: the epoch is over.
        """
        async with self._db.session() as connection:
            done = await connection.execute(
                """
                INSERT INTO offsets AS o (topic, part, epoch, token, birth)
                VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT (part, topic) DO UPDATE
                SET token = excluded.token, birth = excluded.birth, updated_at = now()
                WHERE o.epoch = excluded.epoch
                """,
                self.topic,
                part,
                epoch,
                stored.place,
                stored.birth,
            )
        self._require_one(done, part, epoch)

    async def release(self, epochs: Mapping[int, int]) -> None:
        """Let the partitions be taken, those that are still ours."""
        async with self._db.session() as connection:
            for part, epoch in epochs.items():
                await connection.execute(
                    """
                    UPDATE offsets SET owner = NULL, lease_until = NULL
                    WHERE topic = $1 AND part = $2 AND epoch = $3
                    """,
                    self.topic,
                    part,
                    epoch,
                )

    def _require_one(self, done: str, part: int, epoch: int) -> None:
        if done.rpartition(" ")[2] != "1":
            raise Fenced(f"{self.topic}/{part}: epoch {epoch} is over")
