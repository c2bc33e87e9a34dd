from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from common.database import Database
from common.errors import Conflict, Unavailable
from common.events.bus import Outgoing
from common.events.envelope import PACKED_HEADERS
from common.events.redis_streams import RedisStreamsBus
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.records import events_partition
from services.usage_tracker.store import LayoutStore
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.repartitioning.conftest import repartition, rows
from tests.usage_tracker.tracker import WINDOWS_PARTS, Reader, Tracker, publish

pytestmark = pytest.mark.bus


async def duplicates(db: Database) -> int:
    async with db.session() as connection:
        return int(await connection.fetchval("SELECT sum(duplicates) FROM parts"))


class Dying:
    """Stands before a store or a bus; the call of that name and number is its last."""

    def __init__(self, real: object, name: str, after: bool) -> None:
        self._real = real
        self._name = name
        self._after = after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name != self._name:
            return method

        async def dies(*args: Any, **kwargs: Any) -> None:
            if self._after:
                await method(*args, **kwargs)
            raise ZeroDivisionError

        return dies


STEPS = (
    *("drain", "places", "fence", "seconds_of_leases", "forget_places", "rehash_some", "open"),
    *("replace", "birth", "publish"),
)


class Sleepy:
    """Stands before a store or a bus; its process stands still at the end of one call."""

    def __init__(self, real: object, name: str) -> None:
        self._real = real
        self._name = name
        self.asleep = asyncio.Event()
        self.woken = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name != self._name:
            return method

        async def sleeps(*args: Any, **kwargs: Any) -> Any:
            found = await method(*args, **kwargs)
            self.asleep.set()
            await self.woken.wait()
            return found

        return sleeps


async def end_locks(db: Database) -> None:
    """As where the connection of a process is lost that holds one; returns once it is free."""
    async with db.session() as connection:
        await connection.execute(
            """
            SELECT pg_terminate_backend(l.pid, 60000) FROM pg_locks AS l JOIN pg_database AS d
                ON d.oid = l.database AND d.datname = current_database()
            WHERE l.locktype = 'advisory' AND l.pid <> pg_backend_pid()
            """
        )


async def all_places(db: Database) -> list[Any]:
    async with db.session() as connection:
        rows = await connection.fetch("SELECT part, token, epoch, birth FROM offsets ORDER BY part")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("wanted", [1, 5])
async def test_all_that_was_taken_is_where_it_belongs_and_repeats_are_found(
    bus: RedisStreamsBus,
    db: Database,
    store: LayoutStore,
    layouts: Layouts,
    arrived: MakeArrived,
    record: MakeRecord,
    wanted: int,
) -> None:
    orgs = [UUID(int=n) for n in range(1, 9)]
    events = [arrived(org_id=orgs[n % 8]) for n in range(400)]
    reader = Reader(bus)
    async with Tracker(bus, db, "1", layouts, lease=0.6), Tracker(bus, db, "2", layouts, lease=0.6):
        await publish(bus, record, *events[:200])
        await repartition(store, bus, db).run(wanted)
        assert await bus.partitions("usage.events") == wanted
        assert (await layouts.read()) == Layout(wanted, 2, State.OPEN, None)
        end = await publish(bus, record, *events[100:], partitions=wanted)
        await reader.until(lambda: reader.events() == 400)
        await reader.until(lambda: reader.fresh(end, wanted))

    expected = sorted(
        (events_partition(*identity, wanted), *identity)
        for identity in ((e.row.org_id, e.row.event_id) for e in events)
    )
    assert sorted(await rows(db, "events")) == expected
    assert sorted(await rows(db, "event_ids")) == expected
    assert await duplicates(db) == 100


async def test_numbers_of_a_source_that_comes_back_go_on(
    bus: RedisStreamsBus,
    db: Database,
    store: LayoutStore,
    layouts: Layouts,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    reader = Reader(bus)
    total = 0
    async with Tracker(bus, db, "1", layouts, lease=0.6):
        for partitions, then in ((2, 1), (1, 2), (2, 3)):
            await publish(bus, record, *(arrived() for _ in range(40)), partitions=partitions)
            total += 40
            await repartition(store, bus, db).run(then)
        await reader.until(lambda: reader.events() == total)
    async with db.session() as connection:
        gaps = await connection.fetch(
            """
            SELECT part FROM delta_blocks GROUP BY part
            HAVING sum(last_seq - first_seq + 1) <> max(last_seq)
            """
        )
    assert gaps == []
    assert len(await rows(db, "events")) == total


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_one_that_was_killed_is_finished_by_another(
    bus: RedisStreamsBus,
    db: Database,
    store: LayoutStore,
    layouts: Layouts,
    arrived: MakeArrived,
    record: MakeRecord,
    step: str,
    after: bool,
) -> None:
    events = [arrived() for _ in range(60)]
    reader = Reader(bus)
    async with Tracker(bus, db, "1", layouts, lease=0.6):
        await publish(bus, record, *events[:40])
        dying = repartition(Dying(store, step, after), Dying(bus, step, after), db)
        with pytest.raises(ZeroDivisionError):
            await dying.run(3)
        await repartition(store, bus, db).run(3)
        await publish(bus, record, *events, partitions=3)
        await reader.until(lambda: reader.events() == 60)
    expected = sorted(
        (events_partition(*identity, 3), *identity)
        for identity in ((e.row.org_id, e.row.event_id) for e in events)
    )
    assert sorted(await rows(db, "events")) == expected
    assert await duplicates(db) == 40


# Until the topic is made anew; and then at whatever is left.
@pytest.mark.parametrize("step", ["seconds_of_leases", "replace", "birth", "rehash_some"])
async def test_one_that_wakes_when_another_has_finished_does_nothing_more(
    bus: RedisStreamsBus,
    db: Database,
    store: LayoutStore,
    layouts: Layouts,
    arrived: MakeArrived,
    record: MakeRecord,
    step: str,
) -> None:
    await layouts.read()
    on_bus = step in ("replace", "birth")
    late = Sleepy(bus if on_bus else store, step)
    first = repartition(store if on_bus else late, late if on_bus else bus, db)
    changing = asyncio.create_task(first.run(3))
    await late.asleep.wait()
    await end_locks(db)
    await repartition(store, bus, db).run(3)
    await publish(bus, record, *(arrived() for _ in range(30)), partitions=3)
    births = [await bus.birth("usage.events", part) for part in range(3)]
    ends = [await bus.end("usage.events", part) for part in range(3)]
    windows = [await bus.end("usage.windows", part) for part in range(WINDOWS_PARTS)]
    places = await all_places(db)

    late.woken.set()
    with pytest.raises((Conflict, Unavailable)):
        await changing
    assert [await bus.birth("usage.events", part) for part in range(3)] == births
    assert [await bus.end("usage.events", part) for part in range(3)] == ends
    assert [await bus.end("usage.windows", part) for part in range(WINDOWS_PARTS)] == windows
    assert await all_places(db) == places


@pytest.mark.parametrize("finished", [False, True])
async def test_who_may_not_change_it_any_more_is_told(
    bus: RedisStreamsBus, db: Database, store: LayoutStore, layouts: Layouts, finished: bool
) -> None:
    await layouts.read()
    await store.drain(3)
    assert await store.fence(3)
    only = await store.only_changer()
    assert only is not None
    await store.check(only, 3)
    with pytest.raises(Conflict):
        await store.check(only, 4)
    if finished:
        await store.open(3)
    else:
        await end_locks(db)
    with pytest.raises(Conflict if finished else Unavailable):
        await store.check(only, 3)
    await only.close()


async def test_what_is_published_late_by_the_old_number_is_left_out_where_it_does_not_belong(
    bus: RedisStreamsBus,
    db: Database,
    store: LayoutStore,
    layouts: Layouts,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    late, later = [arrived() for _ in range(30)], [arrived() for _ in range(10)]
    reader = Reader(bus)
    async with Tracker(bus, db, "1", layouts, lease=0.6):
        await repartition(store, bus, db).run(3)
        # As a process would that stood still since it was told that there are two.
        await bus.publish(
            "usage.events",
            [Outgoing(record(*late, partitions=2).value, partition=1, headers=PACKED_HEADERS)],
        )
        await publish(bus, record, *late, *later, partitions=3)
        await reader.until(lambda: reader.events() == 40)
    assert len(await rows(db, "events")) == 40
    assert await duplicates(db) == 0
