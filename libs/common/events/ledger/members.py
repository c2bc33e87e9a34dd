"""The table ``partition_members``: who is there to share a topic's partitions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from common.database import Database


def share_of(owner: str, members: Sequence[str], partitions: int) -> frozenset[int]:
    """The partitions that are this member's: those whose number, modulo the members, is its rank.

    Raises:
        ValueError: it is none of the members.
    """
    return frozenset(range(sorted(members).index(owner), partitions, len(members)))


class Members:
    """One member's view of a topic's rows. Times are the database's own."""

    def __init__(self, db: Database, *, topic: str, owner: str, lease: float) -> None:
        """Args: ``lease`` in seconds."""
        self._db = db
        self._topic = topic
        self._owner = owner
        self._lease = timedelta(seconds=lease)

    async def join(self) -> list[str]:
        """Be a member for another lease; returns those who are, this one among them.

        A lease that ends later than twice from now was given before the clock was set back: who has
        it is no member until it is renewed.
        """
        async with self._db.session() as connection:
            rows = await connection.fetch(
                """
                WITH me AS (
                    INSERT INTO partition_members (topic, owner, lease_until)
                    VALUES ($1, $2, now() + $3)
                    ON CONFLICT (topic, owner) DO UPDATE SET lease_until = excluded.lease_until
                ), gone AS (
                    DELETE FROM partition_members WHERE topic = $1 AND owner IN (
                        SELECT owner FROM partition_members
                        WHERE topic = $1 AND owner <> $2 AND lease_until <= now()
                        FOR UPDATE SKIP LOCKED
                    )
                )
                SELECT owner FROM partition_members
                WHERE topic = $1 AND owner <> $2
                    AND lease_until > now() AND lease_until <= now() + 2 * $3::interval
                """,
                self._topic,
                self._owner,
                self._lease,
            )
        return [self._owner, *(row["owner"] for row in rows)]

    async def count(self) -> int:
        """How many there are."""
        async with self._db.session() as connection:
            found: int = await connection.fetchval(
                "SELECT count(*) FROM partition_members WHERE topic = $1 AND lease_until > now()",
                self._topic,
            )
        return found

    async def others(self) -> int:
        """How many there are beside this one."""
        async with self._db.session() as connection:
            found: int = await connection.fetchval(
                """
                SELECT count(*) FROM partition_members
                WHERE topic = $1 AND owner <> $2 AND lease_until > now()
                """,
                self._topic,
                self._owner,
            )
        return found

    async def leave(self) -> None:
        """Be none any more."""
        async with self._db.session() as connection:
            await connection.execute(
                "DELETE FROM partition_members WHERE topic = $1 AND owner = $2",
                self._topic,
                self._owner,
            )
