"""Walks over all rows of large tables: a range of blocks a transaction, resumed where it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.database import Connection

Tid = tuple[int, int]


class Range(NamedTuple):
    """Rows of a table from one place to another, which is out."""

    relation: str
    start: Tid
    end: Tid


class Walk:
    """A walk by name. It sees every row that is there when it begins and stays in its place.

    Args:
        name: of the walk.
        blocks: in a range.
    """

    def __init__(self, name: str, blocks: int) -> None:
        self.name = name
        self._blocks = blocks

    async def begin(self, connection: Connection, tables: Sequence[str]) -> None:
        """Begin anew, over the tables with all of their partitions."""
        await self.forget(connection)
        await connection.execute(
            """
            INSERT INTO walks (name, relation, next_block, blocks)
            SELECT $1, c.oid::regclass::text, 0,
                pg_relation_size(c.oid) / current_setting('block_size')::bigint
            FROM unnest($2::text[]) AS wanted (name)
            JOIN pg_class AS c ON c.relkind = 'r' AND (c.oid = wanted.name::regclass
                OR c.oid IN (SELECT relid FROM pg_partition_tree(wanted.name::regclass)))
            """,
            self.name,
            list(tables),
        )

    async def next(self, connection: Connection, parts: int = 1) -> Range | None:
        """The next range, which is done with when the caller's transaction commits.

        None where every range is done or another transaction's; a table that is gone is done.

        Args:
            connection: the caller's.
            parts: how many times smaller than others the range is.
        """
        blocks = max(1, self._blocks // parts)
        while True:
            row = await connection.fetchrow(
                """
                UPDATE walks SET next_block = next_block + $2
                WHERE name = $1 AND relation = (
                    SELECT relation FROM walks WHERE name = $1 AND next_block < blocks
                    ORDER BY relation LIMIT 1 FOR UPDATE SKIP LOCKED
                )
                RETURNING relation, next_block, to_regclass(relation) IS NOT NULL AS exists
                """,
                self.name,
                blocks,
            )
            if row is None:
                return None
            if row["exists"]:
                end: int = row["next_block"]
                return Range(row["relation"], (end - blocks, 0), (end, 0))
            await connection.execute(
                "DELETE FROM walks WHERE name = $1 AND relation = $2", self.name, row["relation"]
            )

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
