"""Walks over all rows of large tables: a range of blocks a transaction, resumed where it ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from common.database import Connection
from common.timeseries import places

Tid = tuple[int, int]
# The days of each table that are walked over; None for all that there is.
Tables = Mapping[str, Iterable[date] | None]


class Range(NamedTuple):
    """Rows of a table from one place to another, which is out, of one part and day or all."""

    relation: str
    part: int | None
    start: Tid
    end: Tid
    day: date | None

    @property
    def where(self) -> str:
        """The rows as a condition, whose parameters are ``arguments``, from the first on."""
        return " AND ".join(f"{which} ${n + 1}" for n, (which, _) in enumerate(self._conditions()))

    @property
    def arguments(self) -> list[object]:
        return [value for _, value in self._conditions()]

    def _conditions(self) -> list[tuple[str, object]]:
        found: list[tuple[str, object]] = [("ctid >=", self.start), ("ctid <", self.end)]
        if self.part is not None:
            found.append(("part =", self.part))
        if self.day is not None:
            start = datetime.combine(self.day, time(), UTC)
            found += [("received_at >=", start), ("received_at <", start + timedelta(days=1))]
        return found


class Walk:
    """A walk by name. It sees every row that is there when it begins and stays in its place.

    Args:
        name: of the walk.
        blocks: in a range.
    """

    def __init__(self, name: str, blocks: int) -> None:
        self.name = name
        self._blocks = blocks

    async def begin(self, connection: Connection, parts: Collection[int], tables: Tables) -> None:
        """Begin anew, over the tables; over these parts where they lie on several nodes."""
        await self.forget(connection)
        for table, days in tables.items():
            wanted = None if days is None else set(days)
            found = await places(connection, table, parts)
            await connection.executemany(
                """
                INSERT INTO walks (name, relation, part, day, next_block, blocks)
                VALUES ($1, $2, $3, $4, 0, $5)
                """,
                [
                    (self.name, table, *place)
                    for place in found
                    if wanted is None or place.day in wanted
                ],
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
