"""``mindweave rotate-signing-key``: the next key that signs tokens, before its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from common.clock import SystemClock
from common.settings import Settings
from common.telemetry import configure_logs
from fleet.access import database, ledger_settings
from services.auth.actions.signing_keys import KeyRing


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
    async with database(settings, "auth") as db:
        key = await KeyRing(db, db.sealer, SystemClock()).rotate(at_once=at_once)
    tell(f"{key.kid} signs from {key.signs_from:%Y-%m-%d %H:%M:%S} UTC on")
