from __future__ import annotations

import asyncio

import pytest

from common.background import PartStatus
from common.database import Database
from common.errors import Conflict, Unavailable
from common.events.ledger import LEASE
from common.events.redis_streams import RedisStreamsBus
from services.usage_tracker.actions.layout import Layouts, Repartitioning, RestartNeeded
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.store import LayoutStore
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.repartitioning.conftest import layouts_of, repartition
from tests.usage_tracker.tracker import PARTS, publish

pytestmark = pytest.mark.bus


async def _is(store: LayoutStore, state: State) -> bool:
    found = await store.read()
    return found is not None and found.state is state


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


async def test_leases_from_before_the_databases_clock_was_set_back_are_not_waited_for(
    bus: RedisStreamsBus, db: Database, store: LayoutStore, layouts: Layouts
) -> None:
    await layouts.read()
    assert await store.seconds_of_leases() == 0
    async with db.session() as connection:
        await connection.execute(
            """
            INSERT INTO offsets (topic, part, owner, lease_until)
            VALUES ('usage.events', 0, 'before', now() + interval '1 hour')
            """
        )
    await store.drain(3)
    assert await store.fence(3)
    assert 0 < await store.seconds_of_leases() <= 2 * LEASE


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
