from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from common.errors import NotReady
from common.service import Parts, Runtime, Service
from common.settings import Settings
from fleet.migrate import migrate_all

pytestmark = pytest.mark.store

NAMES = ("first_things", "second_things")


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[list[Service]]:
    """Two with a database each, and one without."""
    (tmp_path / "0001_things.sql").write_text("CREATE TABLE things (id integer PRIMARY KEY);")

    async def build(_: Runtime) -> Parts:
        return Parts()

    yield [*(Service(n, build, tmp_path) for n in NAMES), Service("stateless", build, None)]
    admin = await asyncpg.connect(settings.database_url)
    for name in NAMES:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await admin.close()


async def test_each_service_gets_its_database_and_nothing_is_applied_twice(
    services: list[Service], settings: Settings
) -> None:
    first, again = await migrate_all(services, settings), await migrate_all(services, settings)

    assert list(first) == list(NAMES)
    assert first["first_things"][-1] == "first_things/0001_things.sql"
    assert again == {name: [] for name in NAMES}


async def test_a_database_with_an_owner_of_its_own_is_migrated_as_that_owner(
    services: list[Service], settings: Settings
) -> None:
    await migrate_all(services, settings)
    owners = {name: settings.owner_dsn(name) for name in NAMES}
    without = settings.model_copy(update={"database_url": None, "database_owner_urls": owners})

    assert await migrate_all(services, without) == {name: [] for name in NAMES}


async def test_a_server_that_does_not_answer_is_named_after_a_while(
    services: list[Service], settings: Settings
) -> None:
    nowhere = settings.model_copy(
        update={"database_url": "postgresql://a:b@127.0.0.1:1/postgres", "startup_timeout": 0.1}
    )

    with pytest.raises(NotReady, match="the database of first_things"):
        await migrate_all(services[:1], nowhere)
