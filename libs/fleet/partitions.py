"""``mindweave partitions N``: another number of partitions for ``usage.events``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from common.clock import SystemClock
from common.database import Database
from common.events.drivers import bus_for
from common.identity.sealing import Sealer
from common.settings import PREFIX, Settings, load_settings, sealing_key
from common.telemetry import Metrics, Telemetry, Tracing, configure_logs
from fleet.embedded.folder import broker_of, read_run
from fleet.environment import secret_is_set
from fleet.status import NotRunning
from services.usage_tracker.actions.layout import publishers
from services.usage_tracker.actions.repartitioning import Repartition
from services.usage_tracker.store import LayoutStore

_SERVICE = "usage_tracker"


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
    tracing = Tracing(None, version=version("mindweave"))
    telemetry = Telemetry(_SERVICE, metrics=Metrics(CollectorRegistry()), tracing=tracing)
    clock = SystemClock()
    async with AsyncExitStack() as closing:
        bus = bus_for(settings, telemetry=telemetry)
        closing.push_async_callback(bus.stop)
        await bus.start()
        db = await Database.open(
            settings.runtime_dsn(_SERVICE),
            name=_SERVICE,
            size=2,
            clock=clock,
            sealer=Sealer(sealing_key(settings, _SERVICE)),
            telemetry=telemetry,
        )
        closing.push_async_callback(db.close)
        skew = timedelta(milliseconds=settings.clock_skew_ms)
        takers = publishers(db, "")
        await Repartition(LayoutStore(db), takers, bus, clock, skew=skew, tell=tell).run(wanted)


def ledger_settings(data: Path) -> Settings:
    """Settings that name the ledger's database and broker: as given, or of a running platform.

    Raises:
        NotRunning: they are not named, and no platform runs in the folder.
        SettingsError: a setting is wrong.
    """
    run = read_run(data) or {}
    given: dict[str, Any] = {}
    if not secret_is_set():
        if not run:
            raise NotRunning(f"No platform runs in {data}, and {PREFIX}SECRET is not set.")
        given["secret"] = (data / "secret").read_text().strip()
    settings = load_settings(**given)
    names = ("database_url", "redis_url")
    found = {n: run[n] for n in names if run.get(n) and getattr(settings, n) is None}
    if settings.kafka_brokers is None:
        found |= broker_of(run)
    settings = settings.model_copy(update=found)
    if settings.database_url is None and _SERVICE not in settings.database_urls:
        raise NotRunning(f"No platform runs in {data}, and DATABASE_URL is not set.")
    if settings.kafka_brokers is None and settings.redis_url is None:
        raise NotRunning(f"No platform runs in {data}, and no broker's address is set.")
    return settings
