from __future__ import annotations

from datetime import timedelta

import pytest

from common.database import Database
from common.timeseries import drop_partitions, partition_days
from tests.usage_tracker.store.conftest import NOW, MakeArrived, MakeRecord, Owner

pytestmark = pytest.mark.store

SERIES = ("adjustments", "event_ids", "events")
# Where a table of days lies, as the server itself tells.
TOLD = {
    "plain": "SELECT relname FROM pg_class WHERE relkind = 'p' ORDER BY 1",
    "timescaledb": "SELECT hypertable_name FROM timescaledb_information.hypertables ORDER BY 1",
    "citus": """SELECT logicalrelid::text FROM pg_dist_partition JOIN pg_class AS c
        ON c.oid = logicalrelid WHERE relkind = 'p' ORDER BY 1""",
}


async def test_tables_of_days_lie_as_the_server_keeps_them(db: Database, variant: str) -> None:
    async with db.session() as connection:
        rows = await connection.fetch(TOLD[variant])
    assert tuple(row[0] for row in rows) == SERIES


async def test_a_row_lies_in_its_day_in_utc_and_goes_with_it(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0)
    last = midnight - timedelta(microseconds=1)
    await owner.process(record(arrived(received_at=last), number=1))
    await owner.process(record(arrived(received_at=midnight), number=2))
    async with db.session() as connection:
        assert {last.date(), midnight.date()} <= set(await partition_days(connection, "events"))
        dropped = await drop_partitions(connection, "events", midnight.date())
        assert f"events_p{last:%Y%m%d}" in dropped
        assert min(await partition_days(connection, "events")) == midnight.date()
        rows = await connection.fetch("SELECT received_at FROM events")
    assert [row["received_at"] for row in rows] == [midnight]
