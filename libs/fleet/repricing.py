"""``mindweave reprice``: a period of an organization's events at today's prices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from common.database import Database
from common.errors import NotFound
from common.telemetry import configure_logs
from fleet.access import LEDGER, database, ledger_settings
from services.usage_tracker.domain.pricing import NANO
from services.usage_tracker.store import LayoutStore, RepricingStore

_LOOK_SECONDS = 0.2
_TELL_EVERY = 50


def reprice(
    org_id: UUID, since: datetime, until: datetime, data: Path, tell: Callable[[str], None]
) -> None:
    """Have the workers price the events anew; returns when they have.

    Args:
        org_id: whose events.
        since: included, by the events' own times.
        until: excluded.
        data: the folder of a platform, where settings name no database.
        tell: is told how far it is and what came of it.

    Raises:
        NotRunning: no servers are named, and no platform runs there.
        NotFound: the organization was deleted meanwhile.
        Unavailable: the database is; what was ordered goes on without anybody who waits.
        SettingsError: a setting is wrong.
    """
    configure_logs("warning")
    asyncio.run(_reprice(org_id, since, until, data, tell))


async def _reprice(
    org_id: UUID, since: datetime, until: datetime, data: Path, tell: Callable[[str], None]
) -> None:
    async with database(ledger_settings(data), LEDGER) as db:
        await ordered(db, org_id, since, until, tell)


async def ordered(
    db: Database, org_id: UUID, since: datetime, until: datetime, tell: Callable[[str], None]
) -> None:
    """As ``reprice``, on the ledger's database."""
    store, layouts = RepricingStore(db), LayoutStore(db)
    number = await store.order_all(org_id, since, until)
    looks = 0
    while True:
        progress = await store.progress(number)
        if progress is None:
            raise NotFound("The organization was deleted.")
        if progress.finished:
            usd = f"{'-' * (progress.cost_nano < 0)}{abs(progress.cost_nano) // NANO}"
            tell(
                f"{progress.events:,} events cost otherwise;"
                f" together {usd}.{abs(progress.cost_nano) % NANO:09d} USD more"
            )
            return
        if looks % _TELL_EVERY == 0:
            layout = await layouts.read()
            parts = "?" if layout is None else layout.partitions
            tell(f"order {number}: {progress.parts} of {parts} partitions are done")
        looks += 1
        await asyncio.sleep(_LOOK_SECONDS)
