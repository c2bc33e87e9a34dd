"""Orders on a real PostgreSQL, and the owners of its parts, who do every step by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from common.clock import ManualClock
from common.database import Change, Database, Scope
from common.testing import silent_telemetry
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.actions.prices import CurrentPrices, PriceActions
from services.usage_tracker.actions.repricing import Repricing
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.pricing import PriceBook, Rate
from services.usage_tracker.store import RepricingStore, UsageStore
from services.usage_tracker.store import repricing as store_of_orders
from services.usage_tracker.store.prices import Stated
from services.usage_tracker.store.walks import Walk
from tests.usage_tracker.conftest import FixedLayouts, MakeArrived
from tests.usage_tracker.deltas import add_up
from tests.usage_tracker.plain import Arrived

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
ORG, OTHER = UUID(int=1), UUID(int=2)
HAIKU, OWN = "claude-haiku-4-5", "a model of our own"
DAY = timedelta(days=1)
TABLES = (
    *("events", "event_ids", "deltas", "delta_blocks", "parts", "outbox", "offsets"),
    *("prices", "repricings", "adjustments", "unpriced", "walks"),
    *("session_deltas", "sessions", "deleted_orgs"),
)
MONEY = ("input_nano", "output_nano", "cache_read_nano", "cache_write_nano", "cost_nano")


class Killed(Exception):
    """In the place of the process's end."""


class World:
    """Owners of the parts, each a process's, with every step by hand."""

    def __init__(self, db: Database, parts: int) -> None:
        self.db = db
        self.actions = PriceActions(db, ManualClock(NOW))
        self.orders = RepricingStore(db)
        self.layouts = FixedLayouts(parts)
        self._layouts = cast(Layouts, self.layouts)
        self.restart()

    def restart(self) -> None:
        """Another process, which remembers nothing."""
        self.prices = CurrentPrices(PriceBook.bundled(), self.db, fresh=0)
        self.usage = UsageStore(self.db)
        self.repricing = Repricing(self.orders, self.usage, self.prices, self._layouts)
        self.accounting = Accounting(self.usage, self.prices, timedelta(days=8))
        self.worker = EventsConsumer(
            self.accounting, self.db, silent_telemetry(), RecentDeltas(), self._layouts
        )

    async def count(self, *records: Any, part: int = 0) -> None:
        await self.worker.take(part)
        async with self.db.session() as connection, connection.transaction():
            await self.worker.apply(connection, part, records)

    async def step(self, part: int, *, kill: bool = False) -> None:
        async with self.db.session() as connection, connection.transaction():
            await self.repricing.step(connection, part)
            if kill:
                raise Killed

    async def finish(self, part: int = 0, *, kills: bool = False) -> int:
        """Do all orders; returns the steps that it took."""
        steps = 0
        await self.repricing.look()
        while self.repricing.due(part):
            if kills:
                with pytest.raises(Killed):
                    await self.step(part, kill=True)
                self.restart()
                await self.repricing.look()
            await self.step(part)
            steps += 1
            assert steps < 1_000
        return steps

    async def state(
        self, model: str = OWN, usd: int = 1, org_id: UUID = ORG, **given: Any
    ) -> Stated:
        fields: dict[str, Any] = {
            "provider": None,
            "service_tier": None,
            "since": NOW - DAY,
            "until": None,
            "rates": (Rate(usd * 10**9), Rate(2 * usd * 10**9), None, None, None),
            "discount_bp": 0,
        }

        def answer(_: Change, stated: Stated) -> Stated:
            return stated

        return await self.actions.create(org_id, model, answer=answer, **fields | given)

    async def all(self, question: str) -> list[tuple[Any, ...]]:
        async with self.db.session() as connection:
            return [tuple(row) for row in await connection.fetch(question)]

    async def windows(self) -> dict[str, int]:
        """The sums of all deltas."""
        names = ("events", "unpriced_events", "input_tokens", *MONEY)
        sums = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names)
        await add_up(self.db)
        (row,) = await self.all(f"SELECT {sums} FROM deltas")
        return dict(zip(names, row, strict=True))


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker", size=6)


@pytest.fixture
async def world(db: Database, monkeypatch: pytest.MonkeyPatch) -> World:
    async with db.change(Scope((ORG, OTHER)), call=None) as change:
        for table in TABLES:
            await change.connection.execute(f"DELETE FROM {table}")
    monkeypatch.setattr(
        store_of_orders, "_walk", lambda part, order: Walk(f"reprice {order.id}/{part}", 2)
    )
    return World(db, 1)


def many(arrived: MakeArrived, count: int, **fields: Any) -> list[Arrived]:
    return [arrived(**{"model": OWN, "input_tokens": n, **fields}) for n in range(count)]
