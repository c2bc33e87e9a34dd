"""How a command reaches a platform that it is no part of: settings, and a service's database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from common.clock import SystemClock
from common.database import Database
from common.identity.sealing import Sealer
from common.settings import PREFIX, Settings, load_settings, sealing_key
from common.telemetry import Metrics, Telemetry, Tracing
from fleet.embedded.folder import broker_of, read_run
from fleet.environment import secret_is_set
from fleet.status import NotRunning

LEDGER = "usage_tracker"


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
    if settings.database_url is None and LEDGER not in settings.database_urls:
        raise NotRunning(f"No platform runs in {data}, and DATABASE_URL is not set.")
    if settings.kafka_brokers is None and settings.redis_url is None:
        raise NotRunning(f"No platform runs in {data}, and no broker's address is set.")
    return settings


@asynccontextmanager
async def database(settings: Settings, service: str, *, size: int = 1) -> AsyncIterator[Database]:
    """The service's database as its runtime role, with telemetry that nobody reads.

    Args:
        settings: that name it.
        service: whose it is.
        size: connections that are open at once.

    Raises:
        Unavailable: it does not answer.
        SettingsError: it is not named.
    """
    tracing = Tracing(None, version=version("mindweave"))
    found = await Database.open(
        settings.runtime_dsn(service),
        name=service,
        size=size,
        clock=SystemClock(),
        sealer=Sealer(sealing_key(settings, service)),
        telemetry=Telemetry(service, metrics=Metrics(CollectorRegistry()), tracing=tracing),
    )
    try:
        yield found
    finally:
        await found.close()
