from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from common.database import Scope
from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import added_up, arrived, fresh
from services.analytics.store import RollupStore
from tests.analytics.deltas import windows_of
from tests.analytics.store.conftest import EVER, MODELS, START, Books, append, ask, roll_up

pytestmark = pytest.mark.store


@pytest.mark.parametrize("rolled", ["never", "gathered", "between", "half", "always"])
@pytest.mark.parametrize("granularity", ["minute", "hour", "day", "month", "all"])
async def test_sums_are_exact_whatever_has_been_rolled_up(db, store, rolled, granularity):
    books = Books()
    before = {"gathered": START, "half": START + timedelta(hours=20)}.get(rolled, EVER)
    await append(db, store, books, books.windows(0, 150))
    if rolled != "never":
        await roll_up(store, books, before)
    await append(db, store, books, books.windows(1, 150), books.windows(0, 50))
    if rolled in ("half", "always"):
        await roll_up(store, books, before)
    start, end = START + timedelta(minutes=37), START + timedelta(hours=55, minutes=11)
    result = await ask(store, books, start, end, granularity)
    for name in SUMS:
        assert result.totals.sums[name] == books.total(name, start, end)
        assert sum(r.sums[name] for r in result.rows) == result.totals.sums[name]


async def test_two_roll_ups_at_once_move_each_window_once(db, store):
    books = Books()
    for _ in range(10):
        await append(db, store, books, books.windows(0, 30))
    moved = await asyncio.gather(
        *(store.gather(books.part) for _ in range(4)),
        *(store.roll_up(books.part, EVER) for _ in range(4)),
    )
    await store.roll_up(books.part, EVER)
    assert 0 < sum(moved[:4]) <= 10
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "month")
    assert result.totals.sums["cost_nano"] == books.total("cost_nano", START, end)


async def test_a_backlog_is_moved_in_bounded_steps(db):
    books, store = Books(), RollupStore(db, step=40)
    rows = [books.row(user_id=uuid4().bytes) for _ in range(100)]
    await append(db, store, books, windows_of(rows))
    assert await store.roll_up(books.part, EVER) == 100
    async with db.session() as connection:
        steps = await connection.fetchval(
            "SELECT count(DISTINCT xmin::text) FROM minutes WHERE part = $1", books.part
        )
    assert steps == 3
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "month")
    assert result.totals.sums["cost_nano"] == books.total("cost_nano", START, end)


async def blocks_of(db, books) -> list[int]:
    async with db.session() as connection:
        rows = await connection.fetch(
            "SELECT windows FROM blocks WHERE part = $1 ORDER BY windows", books.part
        )
    return [row["windows"] for row in rows]


async def test_no_block_is_larger_than_one_transaction_can_move(db):
    books, store = Books(), RollupStore(db, step=40, most=100)
    for size in (250, 90, 30, 30, 30):
        rows = [books.row(user_id=uuid4().bytes) for _ in range(size)]
        await append(db, store, books, windows_of(rows))
    assert await blocks_of(db, books) == [30, 30, 30, 50, 90, 100, 100]
    assert await store.gather(books.part) == 3
    assert await blocks_of(db, books) == [50, 90, 90, 100, 100]
    end = START + timedelta(days=5)
    assert await store.waiting(books.part, end) == 430
    middle = START + timedelta(hours=30, seconds=20)
    over = [row for row in books.rows if row["minute"] * 60 < middle.timestamp() - 20]
    assert await store.roll_up(books.part, middle) == len(over)
    assert await store.waiting(books.part, middle.replace(second=0)) == 0
    assert max(await blocks_of(db, books)) <= 100
    result = await ask(store, books, START, end, "all")
    assert result.totals.sums["events"] == books.total("events", START, end)


async def test_a_small_block_keeps_no_larger_ones_apart(db):
    books, store = Books(), RollupStore(db)
    for size in (1, *[20] * 9):
        rows = [books.row(user_id=uuid4().bytes) for _ in range(size)]
        await append(db, store, books, windows_of(rows))
    assert await store.gather(books.part) == 10
    await append(db, store, books, books.windows(0, 1))
    assert await store.gather(books.part) == 0


async def test_windows_that_share_a_series_by_chance_stay_with_their_organizations(db, store):
    books = Books()
    other = Books(part=books.part)
    rows = [books.row(minute=1), other.row(minute=1)]
    found = arrived([fresh(windows_of(rows), 0)]).deltas
    same = replace(found, series=found.series[[0, 0]])
    assert sorted(added_up([same]).orgs.listed()) == sorted([books.org.bytes, other.org.bytes])


async def test_sketches_survive_the_roll_up(db, store):
    books = Books()
    end = START + timedelta(days=5)
    await append(db, store, books, books.windows(0, 100))
    before = (await ask(store, books, START, end, "all")).totals.bins
    await roll_up(store, books)
    await append(db, store, books, books.windows(0, 1))
    await roll_up(store, books)
    after = dict((await ask(store, books, START, end, "all")).totals.bins)
    last = books.rows[-1]["latency_bins"][0]
    expected = dict(before)
    expected[last] = expected.get(last, 0) + 1
    assert after == expected


async def test_a_long_sketch_is_merged_bin_by_bin(db, store):
    books, expected = Books(), Counter()
    end = START + timedelta(days=5)
    for number in range(30):
        bins = [number % 7, 100 + number, 200 + number % 3]
        row = books.row(
            **(dict.fromkeys(DIMENSIONS) | {"status": "ok"}),
            minute=int(START.timestamp()) // 60,
            latency_bins=bins,
            latency_counts=[1, 2, 3],
        )
        expected.update(dict(zip(bins, [1, 2, 3], strict=True)))
        await append(db, store, books, windows_of([row]))
        await roll_up(store, books, START if number % 2 else EVER)

    assert dict((await ask(store, books, START, end, "all")).totals.bins) == expected
    async with db.session() as connection:
        longest = await connection.fetchval(
            "SELECT max(cardinality(latency_bins)) FROM months WHERE part = $1", books.part
        )
    assert len(expected) <= longest <= 64


def test_series_of_other_dimensions_never_share_an_id():
    books = Books()
    found = arrived([fresh(books.windows(0, 300), 0)])
    keys = list(zip(*(column.listed() for column in found.dimensions.values()), strict=True))
    by_id: dict[bytes, object] = {}
    for series, key in zip(found.deltas.series, keys, strict=True):
        assert by_id.setdefault(series.tobytes(), key) == key
    assert len(by_id) == len({tuple(row[d] for d in DIMENSIONS) for row in books.rows})


async def test_a_series_whose_append_was_rolled_back_is_stored_with_the_next(db, store):
    books = Books()
    record = books.windows(0, 40)
    with suppress(InterruptedError):
        async with db.change(Scope(), call=None) as change:
            await store.append(change.connection, books.part, [record])
            raise InterruptedError
    await append(db, store, books, record)
    await append(db, store, books, books.windows(0, 40))
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "all")
    assert result.totals.sums["events"] == books.total("events", START, end)


@pytest.mark.parametrize("rolled", [False, True])
async def test_a_correction_changes_money_and_nothing_else_on_every_level(db, store, rolled):
    books = Books()
    await append(db, store, books, books.windows(0, 300))
    await roll_up(store, books)
    start, end = START, START + timedelta(days=4)
    before = {g: await ask(store, books, start, end, g) for g in ("minute", "hour", "day", "all")}
    nothing = {
        **dict.fromkeys(SUMS, 0),
        "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0,
        "latency_bins": [],
        "latency_counts": [],
    }
    change = nothing | {"unpriced_events": -1, "input_nano": -7, "cost_nano": -7}
    corrected = [
        {**row, **change, "seq": 301 + n, "reason": "reprice"}
        for n, row in enumerate(row for row in books.rows if row["model"] == MODELS[0])
    ]
    await append(db, store, books, windows_of(corrected))
    if rolled:
        await roll_up(store, books)
    for granularity, was in before.items():
        now = await ask(store, books, start, end, granularity)
        assert len(now.rows) == len(was.rows)
        expected = {
            name: was.totals.sums[name] + change[name] * len(corrected) for name in was.totals.sums
        }
        assert now.totals.sums == expected
        assert sorted(now.totals.bins) == sorted(was.totals.bins)
