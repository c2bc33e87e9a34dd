"""Deltas that wait: packed as they were committed, until they are sent on and become rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from common.columns import column_of
from common.database import Connection, Database
from common.database.copying import copy_rows
from common.sketches import Sketches
from common.threads import off_loop
from services.usage_tracker.domain.blocks import Numbered, packed, sums_of, unpacked
from services.usage_tracker.domain.windows import DIMENSIONS, SUMS, Deltas
from services.usage_tracker.store.rows import (
    DELTA_COLUMNS,
    IDS_OF_DELTA,
    SKETCH,
    TEXTS_OF_DELTA,
    delta_rows,
)

# Deltas that are packed, unpacked or added up in milliseconds.
_MANY = 500
# Commits that are sent on at once, and rows that a worker of the release before has left.
_COMMITS = 8
_ROWS = 2_000
_LOCK = "hashtextextended('mindweave.delta_blocks', $1::bigint)"
# Deltas that one transaction adds up, in about a second and 100 MB.
MOST_DELTAS = 300_000


async def keep(connection: Connection, part: int, numbered: Numbered) -> None:
    """Append the deltas of a commit in the transaction of the part's writer."""
    if not len(numbered.deltas):
        return
    await connection.execute(
        """
        INSERT INTO delta_blocks (part, first_seq, last_seq, reason, data)
        VALUES ($1, $2, $3, $4, $5)
        """,
        part,
        numbered.first,
        numbered.last,
        numbered.reason,
        await off_loop(len(numbered.deltas) > _MANY, packed, numbered.deltas),
    )


class BlockStore:
    """Blocks of deltas, each with the part of its only writer."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def unsent(self, part: int, after: int) -> list[Numbered]:
        """The next deltas behind a number, in their order; empty where there is none."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                """
                SELECT p.last_seq, b.first_seq, b.reason, b.data
                FROM parts AS p LEFT JOIN LATERAL (
                    SELECT first_seq, reason, data FROM delta_blocks
                    WHERE part = $1 AND last_seq > $2 ORDER BY last_seq LIMIT $3
                ) AS b ON true
                WHERE p.part = $1 ORDER BY b.first_seq
                """,
                part,
                after,
                _COMMITS,
            )
            if not rows or rows[0]["last_seq"] <= after:
                return []
            first: int | None = rows[0]["first_seq"]
            if first is None or first > after + 1:
                left = await _rows_between(connection, part, after, first)
                if left or first is None:
                    return left
        return await off_loop(True, list, map(_numbered, rows))

    async def sent(self) -> dict[int, int]:
        """By part, the number up to which deltas were sent on."""
        async with self._db.session() as connection:
            rows = await connection.fetch("SELECT part, seq FROM relays WHERE seq > 0")
        return {row["part"]: row["seq"] for row in rows}

    async def add_up(self, part: int, until: int, most: int = MOST_DELTAS) -> int:
        """Make rows of deltas up to a number, about so many at once; returns how many it were.

        0 where another process is about to, too.
        """
        async with self._db.session() as connection, connection.transaction():
            if not await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({_LOCK})", part):
                return 0
            return await _add_up(connection, part, until, most)


async def hold(connection: Connection, parts: Iterable[int]) -> None:
    """Wait until nobody makes rows of these parts' deltas, and let nobody in this transaction."""
    for part in sorted(parts):
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})", part)


async def _add_up(connection: Connection, part: int, until: int, most: int) -> int:
    sent = await connection.fetch(
        """
        SELECT first_seq, last_seq FROM delta_blocks
        WHERE part = $1 AND last_seq <= $2 ORDER BY last_seq
        """,
        part,
        until,
    )
    rows = await connection.fetch(
        """
        DELETE FROM delta_blocks WHERE part = $1 AND last_seq = ANY ($2::bigint[])
        RETURNING first_seq, reason, data
        """,
        part,
        [last for first, last in sent if last - sent[0]["first_seq"] < most or first == sent[0][0]],
    )
    deleted = await connection.fetch("SELECT org_id FROM deleted_orgs WHERE walking")
    gone = frozenset(row["org_id"].bytes for row in deleted)
    done = 0
    for some in _by_reason(rows):
        found, copied = await off_loop(True, _summed_rows, part, some, gone)
        await copy_rows(connection, "deltas", DELTA_COLUMNS, copied)
        done += found
    return done


def _by_reason(rows: Sequence[Any]) -> Iterator[list[Any]]:
    def reason(row: Any) -> str:
        return row["reason"] or ""

    for _, some in groupby(sorted(rows, key=reason), reason):
        yield list(some)


def _summed_rows(part: int, rows: Sequence[Any], gone: frozenset[bytes]) -> tuple[int, bytes]:
    blocks = [_numbered(row) for row in rows]
    deltas, numbers = sums_of(blocks)
    orgs = deltas.dimensions["org_id"]
    stays = np.array([org not in gone for org in orgs.values], np.bool_)[orgs.codes]
    if not stays.all():
        chosen = np.flatnonzero(stays)
        deltas, numbers = deltas.take(chosen), numbers[chosen]
    copied = delta_rows(part, numbers, deltas, blocks[0].reason)
    return sum(len(block.deltas) for block in blocks), copied


def _numbered(row: Any) -> Numbered:
    return Numbered(row["first_seq"], unpacked(row["data"]), row["reason"])


async def _rows_between(
    connection: Connection, part: int, after: int, before: int | None
) -> list[Numbered]:
    """Deltas that a worker of the release before has left as rows, and has not sent on."""
    ids = ", ".join(f"uuid_send({name}) AS {name}" for name in ("org_id", *IDS_OF_DELTA))
    others = ", ".join((*TEXTS_OF_DELTA, *SUMS, *SKETCH, "reason"))
    rows = await connection.fetch(
        f"""
        SELECT seq, {ids}, extract(epoch FROM start)::bigint / 60 AS minute, {others}
        FROM deltas WHERE part = $1 AND seq > $2 AND ($3::bigint IS NULL OR seq < $3)
        ORDER BY seq LIMIT $4
        """,
        part,
        after,
        before,
        _ROWS,
    )
    return [_delta(row) for row in rows]


def _delta(row: Any) -> Numbered:
    def integers(*values: int) -> Any:
        return np.array(values, np.int64)

    return Numbered(
        row["seq"],
        Deltas(
            integers(row["minute"]),
            {name: column_of([row[name]]) for name in DIMENSIONS},
            {name: integers(row[name]) for name in SUMS},
            Sketches(
                integers(*row["latency_bins"]),
                integers(*row["latency_counts"]),
                integers(len(row["latency_bins"])),
            ),
        ),
        row["reason"],
    )
