"""The places of a topic while nobody works on it: read for a backup, set after a restore."""

from __future__ import annotations

from dataclasses import dataclass

from common.database import Database


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

    async def owned(self) -> int:
        """How many partitions somebody has a lease of."""
        async with self._db.session() as connection:
            found: int = await connection.fetchval(
                "SELECT count(*) FROM offsets WHERE topic = $1 AND lease_until > now()", self.topic
            )
        return found

    async def put(self, part: int, stored: Stored) -> None:
        """Let whoever takes the partition begin there, at once; earlier epochs are over."""
        async with self._db.session() as connection:
            await connection.execute(
                """
                UPDATE offsets
                SET token = $3, birth = $4, epoch = epoch + 1, owner = NULL, lease_until = NULL
                WHERE topic = $1 AND part = $2
                """,
                self.topic,
                part,
                stored.place,
                stored.birth,
            )
