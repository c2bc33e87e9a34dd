from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from common.database import Database, Scope
from services.analytics.domain.windows import unpacked
from services.analytics.store import DeletedOrgs, RollupStore
from tests.analytics.store.conftest import (
    AFTER,
    EVER,
    EVERY_TABLE,
    NOTED,
    START,
    Books,
    all_of,
    append,
    ask,
    roll_up,
)

pytestmark = pytest.mark.store


async def note(db: Database, deleted: DeletedOrgs, books: Books) -> None:
    async with db.change(Scope(), call=None) as change:
        await deleted.note(change, books.part, books.org, NOTED)


async def remove_all(deleted: DeletedOrgs) -> None:
    while await deleted.remove_some(AFTER):
        continue


async def rows_of(db: Database, books: Books) -> Counter[str]:
    """How many rows the organization has, by the tables in which it has any."""
    counted: Counter[str] = Counter()
    async with db.session() as connection:
        for block in await connection.fetch("SELECT data FROM blocks WHERE part = $1", books.part):
            counted["blocks"] += len(unpacked(block["data"]).of(books.org, 0, 2**40))
        for table in EVERY_TABLE:
            counted[table] = await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE org_id = $1", books.org
            )
    return +counted


async def test_a_deleted_organization_leaves_nothing_and_takes_nothing_else_along(db, store):
    books = Books(1)
    other = Books(2, part=books.part)
    other.seq = [100, 0]
    await append(db, store, books, books.windows(0, 30))
    await roll_up(store, books)
    await append(db, store, books, books.windows(0, 5))
    await append(db, store, other, other.windows(0, 30))
    end = START + timedelta(days=5)
    assert (await ask(store, books, START, end, "all")).rows
    deleted = DeletedOrgs(db, step=20)
    await note(db, deleted, books)

    # From the note on nobody is shown anything, whatever is still there.
    hidden = await ask(store, books, START, end, "all")
    assert (hidden.rows, hidden.totals.sums["events"]) == ([], 0)
    assert await store.top(all_of(books, end), "model", 10) == []
    assert not await deleted.remove_some(NOTED)
    assert len(await rows_of(db, books)) == 6

    await remove_all(deleted)
    await roll_up(store, books)
    await remove_all(deleted)
    assert await rows_of(db, books) == {}
    result = await ask(store, other, START, end, "all")
    assert result.totals.sums["events"] == other.total("events", START, end)


async def test_rows_of_a_deleted_organization_go_in_bounded_steps(db, store):
    books = Books()
    await append(db, store, books, books.windows(0, 300))
    await roll_up(store, books)
    deleted = DeletedOrgs(db, step=20)
    await note(db, deleted, books)
    while left := await rows_of(db, books):
        assert await deleted.remove_some(AFTER)
        less = await rows_of(db, books)
        assert 0 < left.total() - less.total() <= 20
    assert await deleted.left() == 1
    await remove_all(deleted)
    assert await deleted.left() == 0


async def test_windows_that_come_after_their_organization_was_removed_go_too(db, store):
    books = Books()
    deleted = DeletedOrgs(db)
    await append(db, store, books, books.windows(0, 30))
    # On its way to the minutes when the organization goes.
    await store.gather(books.part)
    await note(db, deleted, books)
    assert await store.roll_up(books.part, EVER) == 30
    assert (await rows_of(db, books)).keys() == {"series"}
    await remove_all(deleted)
    assert await rows_of(db, books) == {}

    # Another process has not stored its series before.
    await append(db, RollupStore(db), books, books.windows(0, 30))
    assert (await rows_of(db, books)).keys() == {"blocks", "series"}
    assert await store.roll_up(books.part, EVER) == 30
    assert (await rows_of(db, books)).keys() == {"series"}
    assert await deleted.left() == 1
    await remove_all(deleted)
    assert await rows_of(db, books) == {}
