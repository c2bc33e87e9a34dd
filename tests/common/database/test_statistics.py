from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.database.statistics import Statistics, offset_of
from common.settings import Settings
from tests.common.database.conftest import NAME, opened

pytestmark = pytest.mark.store

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def shown(database: Database, name: str, **labels: str) -> float:
    found = database.telemetry.metrics.registry.get_sample_value(
        f"mindweave_{name}", {"service": NAME, **labels}
    )
    assert found is not None, name
    return found


async def test_size_connections_and_what_has_happened_since_the_last_look_are_shown(
    db: Database, settings: Settings
) -> None:
    database = await opened(settings.runtime_dsn(NAME), settings)
    try:
        statistics = Statistics(database)
        await statistics.look()
        begun = shown(database, "database_server_transactions_total", outcome="commit")
        for _ in range(3):
            async with database.change(Scope()) as change:
                await change.connection.execute("SELECT pg_stat_force_next_flush()")
        await statistics.look()
        ended = shown(database, "database_server_transactions_total", outcome="commit")
    finally:
        await database.close()
    assert begun == 0
    assert ended >= 3
    assert shown(database, "database_size_bytes") > 1_000_000
    used = shown(database, "database_server_connections")
    assert 0 < used < shown(database, "database_server_connections_limit")
    assert shown(database, "database_server_blocks_total", source="cache") >= 0
    assert shown(database, "database_server_deadlocks_total") == 0


async def test_a_clock_that_differs_from_the_servers_shows(
    db: Database, settings: Settings
) -> None:
    clock = ManualClock(datetime.now(UTC) - timedelta(hours=1))
    database = await opened(settings.runtime_dsn(NAME), settings, clock=clock)
    try:
        await Statistics(database).look()
    finally:
        await database.close()
    assert shown(database, "clock_offset_seconds") == pytest.approx(3600, abs=300)


def test_a_clock_that_told_its_time_within_the_question_may_be_right() -> None:
    second = timedelta(seconds=1)
    assert offset_of(NOON, NOON + second, NOON + 2 * second) == 0
    assert offset_of(NOON, NOON + 5 * second, NOON + 2 * second) == 3
    assert offset_of(NOON, NOON - 4 * second, NOON + 2 * second) == -4
