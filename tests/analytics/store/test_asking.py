from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.analytics.domain.ranges import pieces
from services.analytics.domain.windows import Windows
from services.analytics.store import Query
from tests.analytics.deltas import windows_of
from tests.analytics.store.conftest import (
    MODELS,
    PROJECTS,
    START,
    Books,
    all_of,
    append,
    ask,
    roll_up,
)

pytestmark = pytest.mark.store


async def test_groups_and_filters_agree_with_sums_by_hand(db, store):
    books = Books()
    await append(db, store, books, books.windows(0, 200))
    await roll_up(store, books)
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "all", group_by=("model", "status"))
    assert len(result.rows) == 6
    for row in result.rows:
        wanted = {d: row.dimensions[d] for d in ("model", "status")}
        assert row.sums["cost_nano"] == books.total("cost_nano", START, end, **wanted)
    one = await ask(store, books, START, end, "all", filters={"project_id": PROJECTS[0]})
    assert one.totals.sums["events"] == books.total(
        "events", START, end, project_id=PROJECTS[0].bytes
    )


async def test_groups_that_only_control_characters_tell_apart_stay_apart(db, store):
    books = Books()
    names = [("x\x01=y", "z"), ("x", "y\x01=z")]
    rows = [books.row(model=model, provider=provider) for model, provider in names]
    await append(db, store, books, windows_of(rows))
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "all", group_by=("model", "provider"))
    assert {(r.dimensions["model"], r.dimensions["provider"]) for r in result.rows} == set(names)


async def test_pages_put_together_are_the_whole_answer(db, store):
    books = Books()
    await append(db, store, books, books.windows(0, 200))
    end = START + timedelta(days=5)
    whole = await ask(store, books, START, end, "hour", group_by=("model",))
    found, after = [], None
    while True:
        query = Query(
            books.part,
            books.org,
            "hour",
            pieces(START, end, "hour"),
            START,
            end,
            group_by=("model",),
            after=after,
            limit=7,
        )
        page = await store.query(query)
        found += page.rows
        assert page.totals == whole.totals
        if not page.more:
            break
        after = page.rows[-1].key
    assert found == list(whole.rows)
    assert [r.start for r in found] == sorted(r.start for r in found)


async def test_a_record_that_comes_twice_counts_once(db, store):
    books = Books()
    first, second = books.windows(0, 20), books.windows(0, 20)
    assert await append(db, store, books, first) == 20
    assert await append(db, store, books, first, second) == 20
    assert await append(db, store, books, second, first) == 0
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "all")
    assert result.totals.sums["events"] == books.total("events", START, end)


async def test_freshness_is_unknown_until_every_source_has_spoken_and_then_the_least(db, store):
    books = Books()
    moment = datetime(2026, 4, 1, 12, 0, 0, 123457, tzinfo=UTC)
    mark = int(moment.timestamp()) * 1_000_000 + moment.microsecond
    await append(db, store, books, books.windows(0, 1, mark))
    end = START + timedelta(days=5)
    # Nobody has said yet that this is all.
    assert (await ask(store, books, START, end, "all")).fresh_until is None
    await append(db, store, books, Windows({}, sources=(1, 2)))
    assert (await ask(store, books, START, end, "all")).fresh_until is None
    await append(db, store, books, Windows({1: mark + 5_000_000}))
    assert (await ask(store, books, START, end, "all")).fresh_until == moment
    # An older one never moves it back.
    await append(db, store, books, Windows({0: mark - 1}))
    assert (await ask(store, books, START, end, "all")).fresh_until == moment


async def test_a_source_that_is_new_counts_at_once_and_one_that_is_gone_holds_nothing_back(
    db, store
):
    books = Books()
    end = START + timedelta(days=5)

    async def fresh(*marks: int | None) -> bool:
        """Whether it is fresh until then; without, whether that is unknown."""
        found = (await ask(store, books, START, end, "all")).fresh_until
        return found == (datetime.fromtimestamp(marks[0], UTC) if marks else None)

    def seconds(**marks: int) -> dict[int, int]:
        return {int(source[1:]): at * 1_000_000 for source, at in marks.items()}

    await append(db, store, books, Windows(seconds(s0=100, s1=90), sources=(1, 2)))
    assert await fresh(90)
    await append(db, store, books, Windows({}, sources=(2, 3)))
    assert await fresh()
    await append(db, store, books, Windows(seconds(s2=80), sources=(2, 3)))
    assert await fresh(80)
    # One that stood still meanwhile tells of what was.
    await append(db, store, books, Windows(seconds(s1=95), sources=(1, 2)))
    assert await fresh(80)
    await append(db, store, books, Windows(seconds(s0=200), sources=(3, 1)))
    assert await fresh(200)


async def test_another_organization_sees_nothing(db, store):
    books = Books()
    other = Books(part=books.part)
    await append(db, store, books, books.windows(0, 20))
    result = await ask(store, other, START, START + timedelta(days=5), "all")
    assert not result.rows
    assert result.totals.sums["events"] == 0
    query = Query(
        other.part,
        other.org,
        "all",
        pieces(START, START + timedelta(days=5), "all"),
        START,
        START + timedelta(days=5),
    )
    assert await store.top(query, "model", 10) == []


async def test_the_costliest_come_first(db, store):
    books = Books()
    await append(db, store, books, books.windows(0, 60))
    end = START + timedelta(days=5)
    rows = await store.top(all_of(books, end), "model", 10)
    costs = [books.total("cost_nano", START, end, model=row.key) for row in rows]
    assert [row.sums["cost_nano"] for row in rows] == costs == sorted(costs, reverse=True)
    assert {row.key for row in rows} == {m for m in MODELS if m}


async def test_sums_beyond_64_bits_stay_exact_and_stop_nobody(db, store):
    books = Books()
    large = 2**62
    for _ in range(3):
        names = ("cost_nano", "input_nano", "input_tokens", "latency_sum_us")
        row = books.row(minute=int(START.timestamp()) // 60, **dict.fromkeys(names, large))
        await append(db, store, books, windows_of([row]))
        await roll_up(store, books)
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "all")
    assert result.totals.sums["cost_nano"] == 3 * large
    assert result.totals.sums["input_tokens"] == 3 * large
