"""The windows of analytics on a real PostgreSQL, and the books that they are compared with."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from uuid import uuid4

import pytest

from common.database import Database, Scope
from services.analytics.domain.measures import DIMENSIONS, GAMMA, SUMS
from services.analytics.domain.ranges import pieces
from services.analytics.domain.windows import Windows
from services.analytics.store import Query, Result, RollupStore
from tests.analytics.deltas import windows_of

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
        rows = [self.row(source) for _ in range(size)]
        return windows_of(rows, source, mark)

    def row(self, source: int = 0, **given: object) -> dict[str, object]:
        """A delta, with what is given."""
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
        row |= given
        self.rows.append(row)
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


def all_of(books: Books, end: datetime) -> Query:
    return Query(books.part, books.org, "all", pieces(START, end, "all"), START, end)


async def roll_up(store: RollupStore, books: Books, before: datetime = EVER) -> int:
    """Make one block of all; move on those before a time, and say how many they are."""
    await store.gather(books.part)
    return await store.roll_up(books.part, before)
