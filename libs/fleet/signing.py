"""``mindweave rotate-signing-key``: the next key that signs tokens, before its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry

from common.clock import SystemClock
from common.database import Database
from common.identity.sealing import Sealer
from common.settings import Settings, sealing_key
from common.telemetry import Metrics, Telemetry, Tracing, configure_logs
from fleet.partitions import ledger_settings
from services.auth.actions.signing_keys import KeyRing

_SERVICE = "auth"


def rotate_signing_key(data: Path, *, at_once: bool, tell: Callable[[str], None]) -> None:
    """Make it on the platform that the settings name, or that runs in the data folder.

    Args:
        data: the folder of a platform.
        at_once: tokens under earlier keys are refused.
        tell: is told when it signs.

    Raises:
        NotRunning: no servers are named, and no platform runs there.
        Unavailable: the database is.
        SettingsError: a setting is wrong.
    """
    configure_logs("warning")
    asyncio.run(_rotate(ledger_settings(data), at_once, tell))


async def _rotate(settings: Settings, at_once: bool, tell: Callable[[str], None]) -> None:
    tracing = Tracing(None, version=version("mindweave"))
    telemetry = Telemetry(_SERVICE, metrics=Metrics(CollectorRegistry()), tracing=tracing)
    clock = SystemClock()
    db = await Database.open(
        settings.runtime_dsn(_SERVICE),
        name=_SERVICE,
        size=1,
        clock=clock,
        sealer=Sealer(sealing_key(settings, _SERVICE)),
        telemetry=telemetry,
    )
    try:
        key = await KeyRing(db, db.sealer, clock).rotate(at_once=at_once)
    finally:
        await db.close()
    tell(f"{key.kid} signs from {key.signs_from:%Y-%m-%d %H:%M:%S} UTC on")
