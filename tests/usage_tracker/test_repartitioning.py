"""Another number of partitions, while work goes on: nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.background import PartStatus
from common.database import Database
from common.errors import Conflict, Unavailable
from common.events.bus import Bus, Outgoing
from common.events.envelope import PACKED_HEADERS
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from services.usage_tracker.actions.layout import Layouts, Repartitioning, RestartNeeded, publishers
from services.usage_tracker.actions.repartitioning import Repartition
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.records import events_partition
from services.usage_tracker.store import LayoutStore
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.tracker import PARTS, SKEW, WINDOWS_PARTS, Reader, Tracker, publish

pytestmark = pytest.mark.bus

TABLES = (
    *("events", "event_ids", "deltas", "parts", "relays", "outbox", "offsets"),
    *("layout", "walks", "partition_members"),
)


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker", size=12)


@pytest.fixture
async def bus(valkey: Valkey, db: Database) -> AsyncIterator[RedisStreamsBus]:
    """A broker and a ledger that hold nothing yet."""
    bus = RedisStreamsBus(valkey.url, telemetry=silent_telemetry())
    await bus.broker.command("FLUSHALL")
    async with db.session() as connection:
        for table in TABLES:
            await connection.execute(f"DELETE FROM {table}")
    await bus.declare("usage.events", PARTS, ["usage_tracker"])
    await bus.declare("usage.windows", WINDOWS_PARTS, ["analytics"])
    yield bus
    await bus.stop()


@pytest.fixture
def store(db: Database) -> LayoutStore:
    return LayoutStore(db)


@pytest.fixture
def layouts(store: LayoutStore, bus: Bus, db: Database) -> Layouts:
    return layouts_of(store, bus, db)


def layouts_of(
    store: LayoutStore, bus: Any, db: Database, told: int | None = None, stands: float = 60.0
) -> Layouts:
    """One more process that takes events in."""
    return Layouts(store, bus, publishers(db, uuid4().hex, stands=stands), told, stands=stands)


def repartition(store: Any, bus: Any, db: Database, told: list[str] | None = None) -> Repartition:
    tell = (told if told is not None else []).append
    return Repartition(store, publishers(db, ""), bus, db.clock, skew=SKEW, tell=tell)


async def rows(db: Database, table: str) -> list[tuple[int, bytes, bytes]]:
    async with db.session() as connection:
        found = await connection.fetch(f"SELECT part, org_id, event_id FROM {table}")
    return [(r["part"], r["org_id"].bytes, r["event_id"].bytes) for r in found]


async def duplicates(db: Database) -> int:
    async with db.session() as connection:
        return int(await connection.fetchval("SELECT sum(duplicates) FROM parts"))


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
            "SELECT part, count(*), max(seq) FROM deltas GROUP BY part HAVING count(*) <> max(seq)"
        )
    assert gaps == []
    assert len(await rows(db, "events")) == total


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


async def end_locks(db: Database) -> None:
    """As where the connection of a process is lost that holds one."""
    async with db.session() as connection:
        await connection.execute(
            """
            SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l JOIN pg_database AS d
                ON d.oid = l.database AND d.datname = current_database()
            WHERE l.locktype = 'advisory' AND l.pid <> pg_backend_pid()
            """
        )


async def all_places(db: Database) -> list[Any]:
    async with db.session() as connection:
        rows = await connection.fetch("SELECT part, token, epoch, birth FROM offsets ORDER BY part")
    return [tuple(row) for row in rows]


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


async def test_nothing_is_changed_while_deltas_wait_to_be_sent_and_it_can_be_called_off(
    bus: RedisStreamsBus,
    db: Database,
    store: LayoutStore,
    layouts: Layouts,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    told: list[str] = []
    await publish(bus, record, *(arrived() for _ in range(20)))
    births = [await bus.birth("usage.events", part) for part in range(PARTS)]
    changing = asyncio.create_task(repartition(store, bus, db, told).run(3))
    await eventually(lambda: any("partitions [0, 1] are not applied" in line for line in told))
    with pytest.raises(Conflict, match="Another process"):
        await repartition(store, bus, db).run(3)
    assert (await layouts.read()).state is State.DRAINING
    changing.cancel()
    await asyncio.wait([changing])
    with pytest.raises(Conflict, match="mindweave partitions 3"):
        await repartition(store, bus, db).run(4)
    await repartition(store, bus, db).run(PARTS)
    assert (await layouts.read()) == Layout(PARTS, 1, State.OPEN, None)
    assert [await bus.birth("usage.events", part) for part in range(PARTS)] == births


async def test_partitions_whose_deltas_were_not_all_sent_are_not_taken(
    bus: RedisStreamsBus, db: Database, store: LayoutStore, layouts: Layouts
) -> None:
    await layouts.read()
    await store.drain(3)
    async with db.session() as connection:
        await connection.execute("INSERT INTO parts (part, last_seq) VALUES (1, 5)")
        assert not await store.fence(3)
        assert await _is(store, State.DRAINING)
        assert await connection.fetchval("SELECT max(epoch) FROM offsets") == 0
        await connection.execute("INSERT INTO relays (part, seq) VALUES (1, 5)")
    assert await store.fence(3)
    assert await _is(store, State.REHASHING)


async def test_it_waits_for_the_leases_of_those_who_do_not_know_yet(
    bus: RedisStreamsBus, db: Database, store: LayoutStore, layouts: Layouts
) -> None:
    await layouts.read()
    async with db.session() as connection:
        await connection.execute(
            """
            INSERT INTO offsets (topic, part, owner, lease_until)
            VALUES ('usage.events', 0, 'frozen', now() + interval '1 hour')
            """
        )
    changing = asyncio.create_task(repartition(store, bus, db).run(3))
    await eventually(lambda: _is(store, State.REHASHING))
    births = [await bus.birth("usage.events", part) for part in range(PARTS)]
    async with db.session() as connection:
        await connection.execute("UPDATE layout SET fenced_until = now() + interval '0.1 s'")
    changing.cancel()
    await asyncio.wait([changing])
    assert [await bus.birth("usage.events", part) for part in range(PARTS)] == births
    await repartition(store, bus, db).run(3)
    assert await bus.partitions("usage.events") == 3


async def _is(store: LayoutStore, state: State) -> bool:
    found = await store.read()
    return found is not None and found.state is state


async def test_what_is_known_of_the_layout_stands_for_its_seconds_and_no_longer(
    bus: RedisStreamsBus, store: LayoutStore, db: Database
) -> None:
    layouts = layouts_of(store, bus, db, stands=0.3)
    with pytest.raises(Unavailable, match="cannot be asked"):
        layouts.open()
    await layouts.poll()
    before = layouts.open()
    layouts.confirm(before)
    unknown = PartStatus(ready=False, detail="The ledger cannot be asked where events go.")
    await eventually(lambda: layouts.status() == unknown)
    with pytest.raises(Unavailable):
        layouts.confirm(before)


async def test_nothing_that_a_change_does_not_wait_for_is_acknowledged(
    bus: RedisStreamsBus, store: LayoutStore, db: Database
) -> None:
    layouts, told = layouts_of(store, bus, db), list[str]()
    await layouts.poll()
    before = layouts.open()
    changing = asyncio.create_task(repartition(store, bus, db, told).run(3))
    await eventually(lambda: "waits for 1 processes that take events in" in told)
    layouts.confirm(before)
    assert await bus.partitions("usage.events") == PARTS
    await layouts.poll()
    for refused in (layouts.open, lambda: layouts.confirm(before)):
        with pytest.raises(Repartitioning):
            refused()
    assert layouts.status().ready
    await changing
    await layouts.poll()
    assert layouts.open().partitions == 3
    with pytest.raises(Repartitioning):
        layouts.confirm(before)
    await layouts.stop()
    # Even the same number again is another layout.
    await repartition(store, bus, db).run(PARTS)
    await layouts.poll()
    assert layouts.open().partitions == before.partitions
    with pytest.raises(Repartitioning):
        layouts.confirm(before)


async def test_one_that_stands_still_is_waited_for_until_its_knowledge_is_over(
    bus: RedisStreamsBus, store: LayoutStore, db: Database
) -> None:
    frozen, told = layouts_of(store, bus, db, stands=1.0), list[str]()
    await frozen.poll()
    before = frozen.open()
    await repartition(store, bus, db, told).run(3)
    assert "waits for 1 processes that take events in" in told
    with pytest.raises(Unavailable):
        frozen.confirm(before)


async def test_a_process_that_was_told_another_number_says_that_it_needs_a_restart(
    bus: RedisStreamsBus, store: LayoutStore, db: Database
) -> None:
    told = layouts_of(store, bus, db, told=PARTS)
    await told.poll()
    assert told.open().partitions == PARTS
    await told.stop()
    await repartition(store, bus, db).run(3)
    await told.poll()
    with pytest.raises(RestartNeeded, match="MINDWEAVE_PARTITIONS=3") as refused:
        told.open()
    assert refused.value.code == "restart_needed"
    assert not told.status().ready
