"""Sessions on a real PostgreSQL: they agree with windows and raw rows, whatever is moved."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.database import Database
from services.usage_tracker.actions.sessions import Asked, Place, Sessions
from services.usage_tracker.consumer.compaction import SessionCompaction
from services.usage_tracker.domain.islands import Session
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.store.sessions import SessionStore
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.deltas import add_up
from tests.usage_tracker.plain import Arrived
from tests.usage_tracker.repricing.conftest import DAY, HAIKU, NOW, ORG, OTHER, OWN, World

pytestmark = pytest.mark.store

GAP = timedelta(minutes=30)
USERS = [uuid4() for _ in range(4)]
PROJECTS = [uuid4() for _ in range(2)]


def sessions_of(db: Database, gap: timedelta = GAP) -> Sessions:
    return Sessions(SessionStore(db, gap))


async def everything(
    db: Database, org_id: UUID = ORG, size: int = 500, **given: Any
) -> list[Session]:
    """All sessions, page by page."""
    start = microseconds(given.pop("start", NOW - 30 * DAY))
    asked = Asked(org_id, start, microseconds(given.pop("end", NOW + DAY)), **given)
    found: list[Session] = []
    after: Place | None = None
    while True:
        page = await sessions_of(db).page(asked, after, size)
        found += page.sessions
        if page.next is None:
            return found
        after = page.next


def move(db: Database, gap: timedelta = GAP) -> SessionCompaction:
    """All deltas, whenever they were added."""
    return SessionCompaction(SessionStore(db, gap), age=timedelta(0))


async def totals(world: World) -> dict[str, tuple[int, ...]]:
    """Events, those without a price and cost, of windows, raw rows with adjustments, sessions."""
    await add_up(world.db)
    (windows,) = await world.all(
        "SELECT sum(events), sum(unpriced_events), sum(cost_nano) FROM deltas"
    )
    (raw,) = await world.all(
        """
        SELECT count(*), count(*) FILTER (WHERE model IS NOT NULL AND cost_nano IS NULL),
            sum(cost_nano)
        FROM events
        """
    )
    (more,) = await world.all(
        """
        SELECT 0, coalesce(sum(unpriced), 0), coalesce(sum(cost_nano), 0) FROM adjustments
        """
    )
    parts = [s.whole for org in (ORG, OTHER) for s in await everything(world.db, org)]
    sums = ("events", "unpriced_events", "cost_nano")
    return {
        "windows": tuple(map(int, windows)),
        "raw": tuple(int(a + b) for a, b in zip(raw, more, strict=True)),
        "sessions": tuple(sum(getattr(part, name) for part in parts) for name in sums),
    }


def some(arrived: MakeArrived, dice: random.Random, count: int) -> list[Arrived]:
    return [
        arrived(
            org_id=dice.choice([ORG, ORG, OTHER]),
            model=dice.choice([OWN, HAIKU]),
            at=NOW - dice.choice([2, 60, 4000]) * dice.random() * timedelta(minutes=1),
            user_id=dice.choice(USERS),
            project_id=dice.choice(PROJECTS),
            session_id=dice.choice([None, None, "one", "two"]),
            input_tokens=dice.randrange(10_000),
        )
        for _ in range(count)
    ]


async def test_windows_raw_rows_and_sessions_agree_over_repeats_prices_kills_and_moves(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    dice = random.Random(1)
    sent: list[Arrived] = []
    for n in range(6):
        batch = some(arrived, dice, 120)
        await world.count(record(*batch, *dice.sample(sent, min(40, len(sent)))))
        sent += batch
        if n % 2:
            await move(world.db).step()
    assert len({*(await totals(world)).values()}) == 1
    before = {s.id: s.whole.events for s in await everything(world.db)}

    await world.state(usd=3)
    await world.finish(kills=True)
    await world.state(HAIKU, usd=7)
    await world.orders.order_all(ORG, NOW - 10 * DAY, NOW + DAY)
    await world.finish(kills=True)
    for _ in range(2):
        found = await totals(world)
        assert len({*found.values()}) == 1, found
        assert {s.id: s.whole.events for s in await everything(world.db)} == before
        await move(world.db).step()
    assert not await world.all("SELECT FROM session_deltas")
    assert found["windows"][0] == len(sent)


async def test_a_batch_that_is_rolled_back_adds_to_no_session(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.worker.take(0)
    async with world.db.session() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await world.worker.apply(connection, 0, [record(arrived())])
        await transaction.rollback()
    assert await everything(world.db) == []


async def test_pages_show_each_session_once_the_latest_first_whatever_their_size(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    events = [
        arrived(at=NOW - timedelta(hours=3) * n, user_id=user) for n in range(20) for user in USERS
    ]
    random.Random(2).shuffle(events)
    await world.count(record(*events[:40]))
    await move(world.db).step()
    await world.count(record(*events[40:]))

    found = await everything(world.db)
    assert len(found) == 80
    places = [(s.started_us, s.id) for s in found]
    assert places == sorted(places, reverse=True)
    for size in (1, 3, 79, 80):
        assert await everything(world.db, size=size) == found
    early = [s for s in found if s.started_us < microseconds(NOW - DAY)]
    assert await everything(world.db, end=NOW - DAY) == early
    (first, *_) = found
    one = await everything(world.db, user_id=first.user_id)
    assert one == [s for s in found if s.user_id == first.user_id]


async def test_a_session_is_whole_wherever_the_time_that_is_asked_for_ends(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    """A day and more without a gap, around midnight too, next to one that events name."""
    times = [NOW - timedelta(minutes=20) * n for n in range(100)]
    mine = [arrived(at=at, user_id=USERS[0]) for at in times]
    named = [arrived(at=at, session_id="s", user_id=USERS[1]) for at in times[::30]]
    await world.count(record(*mine[::2], *named[::2]))
    await move(world.db).step()
    await world.count(record(*mine[1::2], *named[1::2]))

    begun = NOW - timedelta(minutes=20) * 99
    found = await everything(world.db, start=begun, end=begun + timedelta(minutes=1))
    assert [(s.whole.events, s.session_id) for s in found] == [(100, None)]
    assert found[0].ended_us == microseconds(NOW)
    assert await everything(world.db, start=begun + timedelta(minutes=1), end=NOW) != found
    (one,) = await everything(world.db, start=times[90], end=times[89])
    assert (one.whole.events, one.session_id) == (len(named), "s")
    # In the middle of both neither has begun.
    assert await everything(world.db, start=times[50], end=NOW + DAY) == []


async def test_an_old_id_leads_to_the_session_that_holds_its_events(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    def at(minutes: int) -> Arrived:
        return arrived(at=NOW + timedelta(minutes=minutes), user_id=USERS[0])

    await world.count(record(at(-100), at(-60), at(0)))
    old = [s.id for s in await everything(world.db)]
    assert len(old) == 3
    await move(world.db).step()
    await world.count(record(at(-80), at(-110)))
    late, joined = await everything(world.db)

    sessions = sessions_of(world.db)
    assert late.id == old[0]
    assert [await sessions.session(ORG, i) for i in old] == [late, joined, joined]
    assert await sessions.session(ORG, joined.id) == joined
    assert joined.id not in old
    assert await sessions.session(OTHER, joined.id) is None
    assert await sessions.session(ORG, uuid4()) is None


async def test_another_gap_parts_what_has_not_been_moved(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(
        record(*(arrived(at=NOW - timedelta(minutes=10) * n, user_id=USERS[0]) for n in range(3)))
    )
    asked = Asked(ORG, 0, microseconds(NOW + DAY))
    for gap, sessions in ((5, 3), (10, 3), (11, 1)):
        found = await sessions_of(world.db, timedelta(minutes=gap)).page(asked, None, 10)
        assert len(found.sessions) == sessions


async def test_what_is_read_while_deltas_are_moved_is_always_all(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.usage_tracker.store.sessions._STEP", 10)
    dice = random.Random(3)
    for _ in range(30):
        await world.count(record(*some(arrived, dice, 20)))
    whole = (await totals(world))["windows"]
    moving = asyncio.create_task(move(world.db).step())
    while not moving.done():
        assert (await totals(world))["sessions"] == whole
    assert await moving == 0
    assert (await totals(world))["sessions"] == whole


async def test_deltas_become_rows_by_their_age_or_where_there_are_many(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    store = SessionStore(world.db, GAP)
    await world.count(record(*(arrived(user_id=uuid4()) for _ in range(5))))
    assert await store.due(DAY, 4) == [ORG]
    # Whoever has too many is looked at again at once, and none that has not.
    assert await store.due(DAY, 5) == []
    assert await store.due(DAY, 4) == []
    await world.all(
        "UPDATE session_deltas SET appended_at = now() - interval '25 hours' RETURNING 1"
    )
    assert await SessionCompaction(store, age=DAY, much=5).step() == 0
    assert await world.all("SELECT count(*) FROM sessions") == [(5,)]
    await world.count(record(*(arrived(org_id=org) for org in (ORG, OTHER) for _ in range(3))))
    assert await SessionCompaction(store, age=timedelta(0), much=1).step() == 1
    assert await world.all("SELECT count(*) FROM session_deltas") == [(1,)]


async def test_deltas_of_all_parts_become_rows_some_at_a_time(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.usage_tracker.store.sessions._STEP", 4)
    for n in range(6):
        some = record(*(arrived(user_id=uuid4()) for _ in range(3)), part=n % 2, number=n)
        await world.count(some, part=n % 2)
    before = await everything(world.db)
    store, moved = SessionStore(world.db, GAP), []
    while some_moved := await store.compact(ORG):
        moved.append(some_moved)
        assert await everything(world.db) == before
    assert (moved, len(before)) == ([6, 6, 6], 18)


async def test_rows_are_not_moved_under_one_who_reads_them(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    """Nodes commit one after another: who reads then might see a delta twice, or nowhere."""
    await world.count(record(arrived()))
    store = SessionStore(world.db, GAP)
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    async def waiting() -> bool:
        return bool(await world.all(waits))

    async with store.view(ORG) as view:
        moving = asyncio.create_task(store.compact(ORG))
        await eventually(waiting)
        assert len(view.recent.rows) == 1
        assert await world.all("SELECT count(*) FROM sessions") == [(0,)]
    assert await moving == 1
    assert await world.all("SELECT count(*) FROM sessions") == [(1,)]
