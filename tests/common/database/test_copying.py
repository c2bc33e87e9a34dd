"""Rows laid out column by column are what PostgreSQL reads."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from common.columns import Column, column_of
from common.database import Database
from common.database.copying import EPOCH_US, CopyRows, copy_rows

pytestmark = pytest.mark.store

COLUMNS = ("two", "eight", "maybe", "at", "id", "a", "b", "c", "d", "alone", "fours", "eights")


def pair(column: Column) -> tuple[list[bytes | None], Any]:
    return column.encoded(), column.codes


@pytest.mark.parametrize("rows", [1, 7, 3_000])
@pytest.mark.parametrize("distinct", [1, 3, 10**6])
async def test_what_is_copied_is_what_was_laid_out(db: Database, rows: int, distinct: int) -> None:
    random = Random(rows + distinct)

    def some(*choice: Any) -> list[Any]:
        return [random.choice(choice) if random.random() < 0.9 else None for _ in range(rows)]

    def texts() -> list[str | None]:
        values = [f"{random.randrange(distinct)}\x01é" * random.randrange(1, 3) for _ in range(9)]
        many = [f"t{random.randrange(distinct)}" for _ in range(rows)]
        return many if distinct > 3 else some(*values)

    eight = np.array([random.randrange(-(2**63), 2**63) for _ in range(rows)], np.int64)
    there = np.array([random.random() < 0.5 for _ in range(rows)])
    ids = [UUID(int=random.getrandbits(128)) for _ in range(rows)]
    a, b, alone = texts(), texts(), texts()
    c = some(*(UUID(int=n).bytes for n in range(1, 4)))
    d = some(b"", b"\x00\xff", b"x" * 300)
    lengths = [random.randrange(3) for _ in range(rows)]
    cells = np.arange(sum(lengths))

    copied = CopyRows(rows, len(COLUMNS)).int2(-3).int8(eight).int8(eight, there)
    copied.timestamp(np.full(rows, EPOCH_US + 5)).raw(
        np.frombuffer(b"".join(i.bytes for i in ids), np.uint8).reshape(-1, 16)
    )
    copied.coded(*(pair(column_of(column)) for column in (a, b, c, d))).coded(
        pair(column_of(alone))
    )
    copied.int4_arrays(cells, np.cumsum(lengths)).int8_arrays(cells, np.cumsum(lengths))

    async with db.session() as connection, connection.transaction():
        await copy_rows(connection, "copied", COLUMNS, copied.finish())
        found = await connection.fetch("SELECT * FROM copied ORDER BY id")
        await connection.execute("DELETE FROM copied")
    ends = np.cumsum(lengths)
    wanted = [
        (
            *(-3, int(eight[n]), int(eight[n]) if there[n] else None, found[0]["at"], ids[n]),
            *(a[n], b[n], UUID(bytes=c[n]) if c[n] else None, d[n], alone[n]),
            *(list(range(ends[n] - lengths[n], ends[n])),) * 2,
        )
        for n in range(rows)
    ]
    assert [tuple(row) for row in found] == sorted(wanted, key=lambda row: row[4])
    assert found[0]["at"].isoformat() == "2000-01-01T00:00:00.000005+00:00"


async def test_a_column_that_is_missing_is_noticed() -> None:
    with pytest.raises(ValueError, match="1 of 2 columns"):
        CopyRows(1, 2).int2(1).finish()


async def test_columns_of_many_values_are_no_more_than_their_rows_together() -> None:
    """Whoever sends the events chooses how many values a column has."""
    many = [pair(column_of([f"{n}{name}" for n in range(10_000)])) for name in "abcdefgh"]
    stream = CopyRows(10_000, len(many)).coded(*many).finish()
    assert len(stream) < 10_000 * (2 + len(many) * 10) + 100
