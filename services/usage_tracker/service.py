"""Composition root of usage_tracker."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from common.events.consumer import EventConsumer
from common.events.ledger import PartitionConsumer
from common.ids import uuid7
from common.service import Parts, Runtime, Service
from mindweave.project.v1.project_pb2_grpc import ProjectServiceStub
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.ingest import Ingest
from services.usage_tracker.actions.layout import Layouts, publishers
from services.usage_tracker.actions.prices import CurrentPrices, PriceActions
from services.usage_tracker.actions.projects import Projects
from services.usage_tracker.actions.raw_events import RawEvents
from services.usage_tracker.actions.repricing import Repricing
from services.usage_tracker.actions.sessions import Sessions
from services.usage_tracker.actions.turns import Shares, Turns
from services.usage_tracker.consumer.backups import BackupRoom
from services.usage_tracker.consumer.compaction import SessionCompaction, WindowCompaction
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.forgetting import Forgetting, eviction
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.consumer.relay import WindowsRelay
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.records import EVENTS_TOPIC
from services.usage_tracker.http import UsageRoutes
from services.usage_tracker.rpc.prices import PriceServicer
from services.usage_tracker.rpc.raw_events import RawEventServicer
from services.usage_tracker.rpc.sessions import SessionServicer
from services.usage_tracker.store import BlockStore, LayoutStore, RepricingStore, UsageStore
from services.usage_tracker.store.raw_events import RawEventStore
from services.usage_tracker.store.sessions import SessionStore

NAME = "usage_tracker"
# Bodies that a process judges at the same time. A second one would take the interpreter from who
# answers, and from the first.
_JUDGED = 1
# Partitions that it counts at the same time: one computes while one waits.
_COUNTED = 2
_PLATFORM_EVENTS = "platform.events"
_PRICES = "mindweave.usage_tracker.v1.PriceService"
_SESSIONS = "mindweave.usage_tracker.v1.SessionService"
_RAW_EVENTS = "mindweave.usage_tracker.v1.RawEventService"


async def build(runtime: Runtime) -> Parts:
    settings, clock, telemetry = runtime.settings, runtime.clock, runtime.telemetry
    db = await runtime.database()
    raw = timedelta(days=settings.raw_retention_days)
    ids = timedelta(days=settings.id_retention_days)
    store, blocks = UsageStore(db), BlockStore(db)
    owner = f"{NAME}-{uuid7()}"
    layouts = Layouts(LayoutStore(db), runtime.bus, publishers(db, owner), settings.partitions)
    projects = Projects(runtime.stub("project", ProjectServiceStub), clock)
    ingest = Ingest(
        bus=runtime.bus,
        access=runtime.access,
        projects=projects,
        clock=clock,
        telemetry=telemetry,
        layouts=layouts,
        raw_retention=raw,
        turns=Turns(
            at_once=_JUDGED,
            shares=Shares(
                everybody=settings.limits.ingest_bytes,
                org=settings.limits.ingest_bytes_per_org,
                credential=settings.limits.ingest_bytes_per_credential,
            ),
        ),
    )
    recent = RecentDeltas()
    prices = CurrentPrices(PriceBook.bundled(), db)
    repricing = Repricing(RepricingStore(db), store, prices, layouts)
    accounting = Accounting(store, prices, ids)
    counting = EventsConsumer(accounting, db, telemetry, recent, layouts)
    worker = PartitionConsumer(
        bus=runtime.bus,
        db=db,
        topic=EVENTS_TOPIC,
        group=NAME,
        owner=owner,
        apply=counting.apply,
        after=counting.after,
        on_take=counting.take,
        clock=clock,
        partitions=settings.partitions,
        at_once=_COUNTED,
        chores=repricing,
    )
    relay = WindowsRelay(
        bus=runtime.bus,
        store=store,
        blocks=blocks,
        progress=worker,
        clock=clock,
        telemetry=telemetry,
        partitions=settings.windows_partitions,
        skew=timedelta(milliseconds=settings.clock_skew_ms),
        layouts=layouts,
        recent=recent,
    )
    sessions = SessionStore(db, timedelta(minutes=settings.session_gap_minutes))
    forgetting = Forgetting(store, clock, layouts=layouts, raw=raw, ids=ids)
    return Parts(
        servicers=[
            (_PRICES, PriceServicer(PriceActions(db, clock))),
            (_SESSIONS, SessionServicer(Sessions(sessions), clock)),
            (_RAW_EVENTS, RawEventServicer(RawEvents(RawEventStore(db), raw), clock)),
        ],
        app=UsageRoutes(ingest, runtime.bus, telemetry, store.repeats).app(),
        serving=[
            layouts,
            runtime.bus.tail([_PLATFORM_EVENTS], eviction(projects, runtime.access)),
        ],
        tasks=[
            worker,
            relay,
            WindowCompaction(blocks, timedelta(seconds=settings.compaction_seconds)).periodic(),
            SessionCompaction(sessions).periodic(),
            forgetting.periodic(),
            repricing.periodic(),
            BackupRoom(runtime.bus, telemetry).periodic(),
            EventConsumer(bus=runtime.bus, db=db, handlers={"org.deleted": forgetting.org_deleted}),
        ],
    )


SERVICE = Service(NAME, build, Path(__file__).parent / "migrations")
