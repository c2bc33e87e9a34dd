"""Deltas that wait, packed, until they are sent on and added up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from common.database import Database
from services.usage_tracker.domain.windows import DIMENSIONS, SUMS
from services.usage_tracker.store import BlockStore, UsageStore
from tests.usage_tracker.deltas import add_up, total, waiting
from tests.usage_tracker.store.conftest import NOW, MakeArrived, MakeRecord, Owner

pytestmark = pytest.mark.store

HOUR = timedelta(hours=1)
IDS = ("org_id", "project_id", "team_id", "user_id", "api_key_id")
Key = tuple[Any, ...]
Added = dict[Key, tuple[int, ...]]


async def rows(db: Database) -> list[dict[str, Any]]:
    """What has become rows, as ``waiting`` tells of what has not."""
    ids = ", ".join(f"uuid_send({name}) AS {name}" for name in IDS)
    async with db.session() as connection:
        found = await connection.fetch(
            f"SELECT *, extract(epoch FROM start)::bigint / 60 AS minute, {ids} FROM deltas"
        )
    return [
        {**row, **dict(zip(IDS, list(row.values())[-len(IDS) :], strict=True))} for row in found
    ]


def added(deltas: list[dict[str, Any]]) -> Added:
    """In Python, by window, combination of dimensions and reason; sketches bin by bin."""
    names = [name for name in SUMS if not name.startswith("cache_write_")]
    sums: defaultdict[Key, tuple[int, ...]] = defaultdict(lambda: (0,) * len(names))
    for delta in deltas:
        key = (delta["minute"], delta["reason"], *(delta[name] for name in DIMENSIONS))
        sums[key] = tuple(
            a + b for a, b in zip(sums[key], (delta[name] for name in names), strict=True)
        )
        for place, count in zip(delta["latency_bins"], delta["latency_counts"], strict=True):
            sums[*key, place] = tuple(n + count for n in sums[*key, place])
    return dict(sums)


async def some(owner: Owner, arrived: MakeArrived, record: MakeRecord, commits: int = 12) -> None:
    random = Random(1)
    for number in range(commits):
        events = [
            arrived(
                org_id=UUID(int=random.choice((1, 2))),
                user_id=UUID(int=random.randrange(3) + 1),
                latency_us=random.choice((None, 5, 5000)),
                input_tokens=random.randrange(10**6),
                model=random.choice(("gpt-5-mini", "acme-13b")),
                status=random.choice(("ok", "error")),
            )
            for _ in range(40)
        ]
        await owner.process(record(*events, number=number))


async def test_what_was_sent_becomes_rows_with_the_same_sums_and_numbers_of_their_own(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    await some(owner, arrived, record)
    before = await waiting(db)
    await add_up(db)

    after = await rows(db)
    assert added(after) == added(before)
    assert await waiting(db, after=before[-1]["seq"]) == []
    assert len(after) == len(added(before).keys() - {k for k in added(before) if len(k) > 13})
    assert len(after) < len(before) / 3
    assert {row["seq"] for row in after} <= {row["seq"] for row in before}
    assert len({row["seq"] for row in after}) == len(after)


async def test_what_was_not_sent_on_waits(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    for number in range(3):
        await owner.process(record(arrived(), number=number))
    blocks = BlockStore(db)
    assert await blocks.add_up() == 0
    await store.sent(0, 2)
    assert await blocks.add_up() == 2
    assert [row["seq"] for row in await waiting(db, after=2)] == [3]
    assert await total(db, "events") == 3


async def test_some_at_a_time_and_several_at_once_double_nothing(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    await some(owner, arrived, record)
    before = added(await waiting(db))
    await store.sent(0, 10**9)
    blocks = BlockStore(db)
    while any(await asyncio.gather(*(blocks.add_up(100) for _ in range(3)))):
        continue
    assert added(await rows(db)) == before


async def test_sums_that_64_bits_do_not_hold_stay_apart(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    await owner.process(record(arrived()))
    ((_, deltas, _),) = await BlockStore(db).unsent(0, 0)
    large = replace(deltas, sums=deltas.sums | {"cost_nano": np.array([2**61], np.int64)})
    for _ in range(5):
        async with db.session() as connection, connection.transaction():
            await store.append_deltas(connection, 0, large)
    before = added(await waiting(db))
    await add_up(db)
    assert added(await rows(db)) == before
    assert len(await rows(db)) > 1


async def test_deltas_of_a_deleted_organization_that_still_wait_become_no_rows(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    await owner.process(record(arrived(org_id=UUID(int=1)), arrived(org_id=UUID(int=2))))
    async with db.change(call=None) as change:
        await store.note_deleted(change, UUID(int=1), NOW)
    await store.begin_forgetting(NOW.replace(year=NOW.year + 1))
    while await store.forget_some():
        continue
    assert await store.to_forget() == 1
    await add_up(db)
    assert not await store.forget_some()
    assert await store.to_forget() == 0
    assert [row["org_id"] for row in await rows(db)] == [UUID(int=2).bytes]


async def test_who_begins_to_forget_waits_for_rows_that_are_being_made(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    await owner.process(record(*(arrived(org_id=UUID(int=1)) for _ in range(50))))
    async with db.change(call=None) as change:
        await store.note_deleted(change, UUID(int=1), NOW)
    async with db.session() as connection, connection.transaction():
        await connection.execute("SELECT FROM delta_blocks WHERE part = 0 FOR UPDATE")
        begun = asyncio.create_task(store.begin_forgetting(NOW.replace(year=NOW.year + 1)))
        await asyncio.wait([begun], timeout=0.3)
        assert not begun.done()
    await begun
    await add_up(db)
    while await store.forget_some():
        continue
    assert await total(db, "events") == 0


async def test_rows_that_the_release_before_has_not_sent_on_come_first_and_in_their_order(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    for number in range(5):
        await owner.process(
            record(*(arrived(at=NOW - number * HOUR) for _ in range(2)), number=number)
        )
    before = await waiting(db)
    await store.sent(0, 3)
    await BlockStore(db).add_up()
    async with db.session() as connection:
        # As if it had sent only the first.
        await connection.execute("UPDATE relays SET seq = 1")

    assert await waiting(db, after=1) == before[1:]
