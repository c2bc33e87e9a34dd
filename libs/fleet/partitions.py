"""``mindweave partitions N``: another number of partitions for ``usage.events``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from common.clock import SystemClock
from common.events.drivers import bus_for
from common.settings import Settings
from common.telemetry import configure_logs
from fleet.access import LEDGER, database, ledger_settings
from services.usage_tracker.actions.layout import publishers
from services.usage_tracker.actions.repartitioning import Repartition
from services.usage_tracker.store import LayoutStore


def change_partitions(wanted: int, data: Path, tell: Callable[[str], None]) -> None:
    """Change it on the platform that the settings name, or that runs in the data folder.

    Args:
        wanted: how many there are to be.
        data: the folder of a platform.
        tell: is told what is done, and what is waited for.

    Raises:
        NotRunning: no servers are named, and no platform runs there.
        Conflict: another change is under way.
        Unavailable: the database or the broker is; run it again.
        SettingsError: a setting is wrong.
    """
    configure_logs("warning")
    asyncio.run(_change(wanted, ledger_settings(data), tell))


async def _change(wanted: int, settings: Settings, tell: Callable[[str], None]) -> None:
    async with database(settings, LEDGER, size=2) as db:
        bus = bus_for(settings, telemetry=db.telemetry)
        try:
            await bus.start()
            skew = timedelta(milliseconds=settings.clock_skew_ms)
            layouts, takers = LayoutStore(db), publishers(db, "")
            change = Repartition(layouts, takers, bus, SystemClock(), skew=skew, tell=tell)
            await change.run(wanted)
        finally:
            await bus.stop()
