"""The roll-ups against a real PostgreSQL, compared with sums made by hand in Python."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from uuid import uuid4

import pytest

from common.database import Database, Scope
from services.analytics.domain import (
    DIMENSIONS,
    GAMMA,
    SUMS,
    Columns,
    Windows,
    fresh,
    pieces,
    series_id,
)
from services.analytics.store import DeletedOrgs, Query, Result, RollupStore

pytestmark = pytest.mark.store

START = datetime(2026, 3, 30, 22, 0, tzinfo=UTC)
EVER = datetime(2200, 1, 1, tzinfo=UTC)
PROJECTS = [uuid4(), uuid4()]
MODELS = ["claude-sonnet-4-5", "gpt-5-mini", None]


@pytest.fixture(scope="module")
async def db(service_database) -> Database:
    return await service_database("analytics")


@pytest.fixture(scope="module")
def store(db: Database) -> RollupStore:
    return RollupStore(db)


PARTS = count(1)


class Books:
    """Deltas made from a seed in a partition of their own, and their sums kept beside."""

    def __init__(self, seed: int = 7, part: int | None = None) -> None:
        self.part = part or next(PARTS)
        self._rng = Random(seed)
        self.org = uuid4()
        self.seq = [0, 0]
        self.rows: list[dict[str, object]] = []

    def windows(self, source: int, size: int, mark: int | None = None) -> Windows:
        names = Columns.__struct_fields__
        columns: dict[str, list[object]] = {name: [] for name in names}
        first = self.seq[source] + 1
        for _ in range(size):
            row = self._row(source)
            self.rows.append(row)
            for name in names:
                columns[name].append(row[name])
        marks = {} if mark is None else {source: mark}
        return Windows(marks, source, first, self.seq[source], Columns(**columns))

    def _row(self, source: int) -> dict[str, object]:
        rng = self._rng
        self.seq[source] += 1
        # 60 hours across the end of a month.
        at = START + timedelta(minutes=rng.randrange(60 * 60))
        latency = rng.randrange(1000, 10**7)
        numbers = {name: rng.randrange(1000) for name in SUMS}
        row: dict[str, object] = {
            **dict.fromkeys(DIMENSIONS),
            **numbers,
            "seq": self.seq[source],
            "org_id": self.org.bytes,
            "minute": int(at.timestamp()) // 60,
            "model": rng.choice(MODELS),
            "project_id": rng.choice(PROJECTS).bytes,
            "status": rng.choice(["ok", "error"]),
            "cache_write_5m_tokens": rng.randrange(100),
            "cache_write_1h_tokens": rng.randrange(100),
            "latency_count": 1,
            "latency_sum_us": latency,
            "latency_bins": [math.ceil(math.log(latency) / math.log(GAMMA))],
            "latency_counts": [1],
            "reason": None,
        }
        row["cache_write_tokens"] = row["cache_write_5m_tokens"] + row["cache_write_1h_tokens"]
        return row

    def total(self, name: str, start: datetime, end: datetime, **wanted: object) -> int:
        return sum(
            row[name]
            for row in self.rows
            if start.timestamp() <= row["minute"] * 60 < end.timestamp()
            and all(row[k] == v for k, v in wanted.items())
        )


async def append(db: Database, store: RollupStore, books: Books, *records: Windows) -> int:
    async with db.change(Scope(), call=None) as change:
        appended = await store.append(change.connection, books.part, records)
    store.remember(appended)
    return appended.rows


async def ask(
    store: RollupStore, books: Books, start: datetime, end: datetime, granularity: str, **more
) -> Result:
    found = pieces(start, end, granularity)
    return await store.query(
        Query(books.part, books.org, granularity, found, start, end, limit=500, **more)
    )


NOTED = datetime(2026, 4, 2, tzinfo=UTC)
AFTER = NOTED + timedelta(seconds=1)
EVERY_TABLE = ("deltas", "recent", "minutes", "hours", "days", "months", "series")


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
        for table in EVERY_TABLE:
            counted[table] = await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE org_id = $1", books.org
            )
    return +counted


def all_of(books: Books, end: datetime) -> Query:
    return Query(books.part, books.org, "all", pieces(START, end, "all"), START, end)


async def roll_up(store: RollupStore, books: Books, before: datetime = EVER) -> int:
    """Move all deltas on, and on again those before a time; returns how many deltas there were."""
    moved = await store.gather(books.part)
    await store.roll_up(books.part, before)
    return moved


@pytest.mark.parametrize("rolled", ["never", "gathered", "between", "half", "always"])
@pytest.mark.parametrize("granularity", ["minute", "hour", "day", "month", "all"])
async def test_sums_are_exact_whatever_has_been_rolled_up(db, store, rolled, granularity):
    books = Books()
    before = {"gathered": START, "half": START + timedelta(hours=20)}.get(rolled, EVER)
    await append(db, store, books, books.windows(0, 150))
    if rolled != "never":
        assert await roll_up(store, books, before) == 150
    await append(db, store, books, books.windows(1, 150), books.windows(0, 50))
    if rolled in ("half", "always"):
        assert await roll_up(store, books, before) == 200
    start, end = START + timedelta(minutes=37), START + timedelta(hours=55, minutes=11)
    result = await ask(store, books, start, end, granularity)
    for name in SUMS:
        assert result.totals.sums[name] == books.total(name, start, end)
        assert sum(r.sums[name] for r in result.rows) == result.totals.sums[name]


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
    record = books.windows(0, 2)
    names = [("x\x01=y", "z"), ("x", "y\x01=z")]
    for i, (model, provider) in enumerate(names):
        record.columns.model[i], record.columns.provider[i] = model, provider
    await append(db, store, books, record)
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
    assert (await rows_of(db, books)).keys() == {"deltas", "series"}
    assert await store.gather(books.part) == 30
    assert (await rows_of(db, books)).keys() == {"series"}
    assert await deleted.left() == 1
    await remove_all(deleted)
    assert await rows_of(db, books) == {}


async def test_two_roll_ups_at_once_move_each_delta_once(db, store):
    books = Books()
    await append(db, store, books, books.windows(0, 300))
    moved = await asyncio.gather(*(store.gather(books.part) for _ in range(4)))
    assert sum(moved) == 300
    await asyncio.gather(*(store.roll_up(books.part, EVER) for _ in range(4)))
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "month")
    assert result.totals.sums["cost_nano"] == books.total("cost_nano", START, end)


async def test_a_backlog_is_moved_in_bounded_steps(db):
    books, store = Books(), RollupStore(db, step=40)
    await append(db, store, books, books.windows(0, 100))
    assert await store.gather(books.part) == 100
    async with db.session() as connection:
        steps = await connection.fetchval(
            "SELECT count(DISTINCT xmin::text) FROM recent WHERE part = $1", books.part
        )
    assert steps == 3
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "month")
    assert result.totals.sums["cost_nano"] == books.total("cost_nano", START, end)


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
        record = books.windows(0, 1)
        bins = [number % 7, 100 + number, 200 + number % 3]
        for name in DIMENSIONS:
            getattr(record.columns, name)[0] = "ok" if name == "status" else None
        record.columns.minute[0] = int(START.timestamp()) // 60
        record.columns.latency_bins[0], record.columns.latency_counts[0] = bins, [1, 2, 3]
        expected.update(dict(zip(bins, [1, 2, 3], strict=True)))
        await append(db, store, books, record)
        await roll_up(store, books, START if number % 2 else EVER)

    assert dict((await ask(store, books, START, end, "all")).totals.bins) == expected
    async with db.session() as connection:
        longest = await connection.fetchval(
            "SELECT max(cardinality(latency_bins)) FROM months WHERE part = $1", books.part
        )
    assert len(expected) <= longest <= 64


def test_series_of_other_dimensions_never_share_an_id():
    found = fresh(Books().windows(0, 300), 0)
    by_id: dict[bytes, object] = {}
    for key in found.series():
        assert by_id.setdefault(series_id(key), key) == key
    assert len(by_id) == len(set(found.series()))


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


async def test_sums_beyond_64_bits_stay_exact_and_stop_nobody(db, store):
    books = Books()
    large = 2**62
    for _ in range(3):
        record = books.windows(0, 1)
        for name in ("cost_nano", "input_nano", "input_tokens", "latency_sum_us"):
            getattr(record.columns, name)[0] = books.rows[-1][name] = large
        record.columns.minute[0] = books.rows[-1]["minute"] = int(START.timestamp()) // 60
        await append(db, store, books, record)
        await roll_up(store, books)
    end = START + timedelta(days=5)
    result = await ask(store, books, START, end, "all")
    assert result.totals.sums["cost_nano"] == 3 * large
    assert result.totals.sums["input_tokens"] == 3 * large


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
    columns = {name: [row[name] for row in corrected] for name in Columns.__struct_fields__}
    last = 300 + len(corrected)
    await append(db, store, books, Windows({}, 0, 301, last, Columns(**columns)))
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
