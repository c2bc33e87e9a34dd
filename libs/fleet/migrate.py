"""Makes and migrates the databases of services."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.database import bootstrap, migrate
from common.service import Service
from common.settings import Settings


async def migrate_all(services: Sequence[Service], settings: Settings) -> dict[str, list[str]]:
    """Bring every service's database up to date, side by side.

    Returns:
        What was applied now, by service.
    """
    owners = [service for service in services if service.migrations is not None]
    applied = await asyncio.gather(*(_migrate(service, settings) for service in owners))
    return {service.name: names for service, names in zip(owners, applied, strict=True)}


async def _migrate(service: Service, settings: Settings) -> list[str]:
    if service.migrations is None:
        return []
    # A database that is named for the service alone was made by whoever named it.
    if settings.database_url is not None and service.name not in settings.database_owner_urls:
        await bootstrap(settings.database_url, service.name, settings)
    return await migrate(settings.owner_dsn(service.name), service.name, service.migrations)
