"""Composition root of analytics."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from common.events.consumer import EventConsumer
from common.events.ledger import PartitionConsumer
from common.ids import uuid7
from common.periodic import Periodic
from common.service import Parts, Runtime, Service
from services.analytics.actions import Freshness, Reports
from services.analytics.consumer import TOPIC, Forgetting, WindowsConsumer
from services.analytics.rpc import AnalyticsServicer
from services.analytics.store import DeletedOrgs, RollupStore

# Every row that is written again costs; every row that waits is read by each question.
ROLL_UP_EVERY = timedelta(seconds=5)
FORGET_EVERY = timedelta(seconds=5)
LOOK_EVERY = timedelta(seconds=5)
# Seconds; what it tells of is how far behind the windows are.
LAG_EVERY = 0.25


async def build(runtime: Runtime) -> Parts:
    settings = runtime.settings
    db = await runtime.database()
    partitions = settings.windows_partitions
    store = RollupStore(db)
    windows = WindowsConsumer(store, runtime.clock, partitions)
    forgetting = Forgetting(DeletedOrgs(db), runtime.clock, partitions)
    reports = Reports(store, runtime.clock, runtime.cache, partitions)
    skew = timedelta(milliseconds=settings.clock_skew_ms)
    freshness = Freshness(store, runtime.clock, partitions, skew, runtime.telemetry)
    return Parts(
        servicers=[("mindweave.analytics.v1.AnalyticsService", AnalyticsServicer(reports))],
        tasks=[
            PartitionConsumer(
                bus=runtime.bus,
                db=db,
                topic=TOPIC,
                group="analytics",
                owner=f"analytics-{uuid7()}",
                apply=windows.append,
                after=windows.appended,
                cadence=LAG_EVERY,
            ),
            Periodic("rollup", windows.roll_up, every=ROLL_UP_EVERY),
            Periodic("deletions", forgetting.step, every=FORGET_EVERY),
            Periodic("freshness", freshness.look, every=LOOK_EVERY),
            EventConsumer(bus=runtime.bus, db=db, handlers={"org.deleted": forgetting.org_deleted}),
        ],
    )


SERVICE = Service("analytics", build, Path(__file__).parent / "migrations")
