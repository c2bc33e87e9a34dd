from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from services.analytics.actions import Freshness
from services.analytics.domain.windows import Windows
from services.analytics.store import RollupStore

pytestmark = pytest.mark.store

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SKEW = timedelta(milliseconds=200)


class Watched:
    """Two partitions of two sources each, and what the metrics say of them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.store = RollupStore(db)
        self.clock = ManualClock(NOON)
        self.freshness = Freshness(self.store, self.clock, 2, SKEW, db.telemetry)

    async def tell(self, part: int, *ages: float) -> None:
        """The watermarks of the sources, seconds before now."""
        marks = {
            source: int((self.clock.now() - SKEW).timestamp() * 1e6) - int(age * 1e6)
            for source, age in enumerate(ages)
        }
        async with self._db.change(Scope(), call=None) as change:
            await self.store.append(change.connection, part, [Windows(marks, sources=(1, 2))])

    def at_most(self, seconds: float) -> float | None:
        return self._value("windows_age_seconds_bucket", le=str(seconds))

    def until(self, part: int) -> float | None:
        return self._value("windows_fresh_until_seconds", partition=str(part))

    def _value(self, name: str, **labels: str) -> float | None:
        registry = self._db.telemetry.metrics.registry
        return registry.get_sample_value(f"mindweave_{name}", {"service": "analytics", **labels})


async def test_a_partition_is_as_old_as_its_oldest_source_or_as_nobody_has_told_of_it(
    service_database,
):
    watched = Watched(await service_database("analytics"))
    # Of partition 1 only one of two sources has told.
    await watched.tell(0, 0.3, 0.1)
    await watched.tell(1, 0.1)
    await watched.freshness.look()
    assert (watched.at_most(0.25), watched.at_most(0.5)) == (1, 2)
    assert watched.until(0) == pytest.approx(NOON.timestamp() - 0.3)
    assert watched.until(1) is None

    watched.clock.advance(timedelta(seconds=4))
    await watched.freshness.look()
    assert (watched.at_most(2.5), watched.at_most(5.0)) == (2, 4)

    await watched.tell(0, 0.1, 0.1)
    await watched.tell(1, 0.1, 0.1)
    await watched.freshness.look()
    assert (watched.at_most(0.25), watched.at_most(5.0)) == (3, 6)
    assert watched.until(1) == pytest.approx(watched.clock.now().timestamp() - 0.1)
