"""Walks over all rows of large tables: a range of blocks a transaction, resumed where it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from common.database import Connection

Tid = tuple[int, int]
# The days of each table that are walked over; None for a table without days.
Tables = Mapping[str, Iterable[date] | None]


class Range(NamedTuple):
    """Rows of a part of a table from one place to another, which is out, of one day or all."""

    relation: str
    part: int
    start: Tid
    end: Tid
    day: date | None

    @property
    def where(self) -> str:
        """The rows as a condition, whose parameters are ``arguments``, from the first on."""
        places = "part = $1 AND ctid >= $2 AND ctid < $3"
        return f"{places} AND {_OF_DAY.format(4, 5)}" if self.day is not None else places

    @property
    def arguments(self) -> list[object]:
        return [self.part, self.start, self.end, *_bounds(self.day)]


_OF_DAY = "received_at >= ${} AND received_at < ${}"


class Walk:
    """A walk by name. It sees every row that is there when it begins and stays in its place.

    Args:
        name: of the walk.
        blocks: in a range.
    """

    def __init__(self, name: str, blocks: int) -> None:
        self.name = name
        self._blocks = blocks

    async def begin(self, connection: Connection, parts: Iterable[int], tables: Tables) -> None:
        """Begin anew, over these parts of the tables."""
        await self.forget(connection)
        for table, days in tables.items():
            for part in parts:
                for day in [None] if days is None else days:
                    await self._add(connection, table, part, day)

    async def _add(self, connection: Connection, table: str, part: int, day: date | None) -> None:
        """Walk over what is there of a day of a part; places are those of where its rows lie."""
        of_day = "" if day is None else f"AND {_OF_DAY.format(2, 3)}"
        blocks: int | None = await connection.fetchval(
            f"""
            SELECT pg_relation_size(tableoid) / current_setting('block_size')::bigint
            FROM {table} WHERE part = $1 {of_day} LIMIT 1
            """,
            part,
            *_bounds(day),
        )
        if blocks:
            await connection.execute(
                """
                INSERT INTO walks (name, relation, part, day, next_block, blocks)
                VALUES ($1, $2, $3, $4, 0, $5)
                """,
                self.name,
                table,
                part,
                day,
                blocks,
            )

    async def next(self, connection: Connection, parts: int = 1) -> Range | None:
        """The next range, which is done with when the caller's transaction commits.

        None where every range is done or another transaction's.

        Args:
            connection: the caller's.
            parts: how many times smaller than others the range is.
        """
        blocks = max(1, self._blocks // parts)
        row = await connection.fetchrow(
            """
            UPDATE walks SET next_block = next_block + $2
            WHERE ctid = (
                SELECT ctid FROM walks WHERE name = $1 AND next_block < blocks
                ORDER BY relation, part, day LIMIT 1 FOR UPDATE SKIP LOCKED
            )
            RETURNING relation, part, day, next_block
            """,
            self.name,
            blocks,
        )
        if row is None:
            return None
        end: int = row["next_block"]
        return Range(row["relation"], row["part"], (end - blocks, 0), (end, 0), row["day"])

    async def left(self, connection: Connection) -> int:
        """Blocks that are not done."""
        left: int = await connection.fetchval(
            """
            SELECT coalesce(sum(blocks - next_block), 0)::bigint FROM walks
            WHERE name = $1 AND next_block < blocks
            """,
            self.name,
        )
        return left

    async def forget(self, connection: Connection) -> None:
        """Let it be over, wherever it is."""
        await connection.execute("DELETE FROM walks WHERE name = $1", self.name)


def _bounds(day: date | None) -> list[datetime]:
    """When a day begins and ends."""
    if day is None:
        return []
    start = datetime.combine(day, time(), UTC)
    return [start, start + timedelta(days=1)]
