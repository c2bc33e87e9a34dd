"""``mindweave migrate``: makes and migrates the databases of services."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.database import bootstrap, migrate
from common.errors import NotReady, Unavailable
from common.settings import PREFIX, Settings, SettingsError, load_settings
from fleet.embedded.folder import read_secret
from fleet.environment import secret_is_set
from fleet.services import owners
from fleet.surroundings import own_database

# Seconds between two tries at a server that does not answer.
_AGAIN = 0.5


class Migrated(Protocol):
    """A service; ``migrations`` is None where it owns no database."""

    @property
    def name(self) -> str: ...
    @property
    def migrations(self) -> Path | None: ...


def run_migrations(data: Path) -> dict[str, list[str]]:
    """Migrate the databases that settings name; where they name none, those of the data folder.

    Returns:
        What was applied now, by service.

    Raises:
        SettingsError: a service's database is not named, or a setting is wrong.
        NotReady: a database server did not answer in time.
        Exception: as ``own_database`` says.
    """
    settings = _named(data)
    if settings is not None:
        return asyncio.run(migrate_all(owners(), settings))
    with own_database(data) as settings:
        return asyncio.run(migrate_all(owners(), settings))


def _named(data: Path) -> Settings | None:
    """Settings that name every database; None where they name none.

    Raises:
        SettingsError: they name some of them, or one of no service.
    """
    known = secret_is_set()
    secret = None if known else read_secret(data)
    # Settings want one; it is of use where roles are made.
    settings = load_settings(**({} if known else {"secret": secret or secrets.token_hex(32)}))
    if not (settings.database_url or settings.database_urls or settings.database_owner_urls):
        return None
    names, named = {owner.name for owner in owners()}, settings.database_owner_urls.keys()
    if strangers := sorted(named - names):
        raise SettingsError(f"{_variables(strangers)}: there is no such service with a database")
    if settings.database_url is None and (missing := sorted(names - named)):
        raise SettingsError(f"DATABASE_URL or {_variables(missing)}: is needed and not set")
    if settings.database_url is not None and not (known or secret):
        raise SettingsError(f"{PREFIX}SECRET: is needed and not set")
    return settings


def _variables(services: Sequence[str]) -> str:
    return ", ".join(f"DATABASE_OWNER_URL_{name.upper()}" for name in services)


async def migrate_all(services: Sequence[Migrated], settings: Settings) -> dict[str, list[str]]:
    """Bring every service's database up to date, side by side.

    Returns:
        What was applied now, by service.

    Raises:
        NotReady: a database server did not answer in time.
    """
    owning = [service for service in services if service.migrations is not None]
    applied = await asyncio.gather(*(_migrate(service, settings) for service in owning))
    return {service.name: names for service, names in zip(owning, applied, strict=True)}


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
