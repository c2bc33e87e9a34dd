"""Makes and migrates the databases of services."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.database import bootstrap, migrate
from common.errors import NotReady, Unavailable
from common.settings import Settings

# Seconds between two tries at a server that does not answer.
_AGAIN = 0.5


class Migrated(Protocol):
    """A service; ``migrations`` is None where it owns no database."""

    @property
    def name(self) -> str: ...
    @property
    def migrations(self) -> Path | None: ...


async def migrate_all(services: Sequence[Migrated], settings: Settings) -> dict[str, list[str]]:
    """Bring every service's database up to date, side by side.

    Returns:
        What was applied now, by service.

    Raises:
        NotReady: a database server did not answer in time.
    """
    owners = [service for service in services if service.migrations is not None]
    applied = await asyncio.gather(*(_migrate(service, settings) for service in owners))
    return {service.name: names for service, names in zip(owners, applied, strict=True)}


async def _migrate(service: Migrated, settings: Settings) -> list[str]:
    """Waits for a database server that is not up yet.

    Raises:
        NotReady: it did not come in time.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + settings.startup_timeout
    while True:
        try:
            return await _bootstrap_and_migrate(service, settings)
        except Unavailable as error:
            if loop.time() > give_up:
                raise NotReady(f"the database of {service.name}: {error}") from error
        await asyncio.sleep(_AGAIN)


async def _bootstrap_and_migrate(service: Migrated, settings: Settings) -> list[str]:
    # A database that is named for the service alone was made by whoever named it.
    if settings.database_url is not None and service.name not in settings.database_owner_urls:
        await bootstrap(settings.database_url, service.name, settings)
    return await migrate(settings.owner_dsn(service.name), service.name, service.migrations)
