from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from common.errors import NotReady
from common.service import Parts, Runtime, Service
from common.settings import Settings, SettingsError
from fleet import migrate
from fleet.environment import without_settings
from fleet.migrate import migrate_all, run_migrations
from fleet.services import Owner
from tests.common.waiting import eventually

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


@pytest.fixture
def _two_owners(services: list[Service], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Owner(s.name, s.migrations) for s in services if s.migrations is not None]
    monkeypatch.setattr(migrate, "owners", lambda: found)
    for name in ("DATABASE_URL", "MINDWEAVE_SECRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_two_owners")
def test_databases_that_are_named_are_migrated_and_nothing_is_started(
    services: list[Service],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.run(migrate_all(services, settings))
    for name in NAMES:
        monkeypatch.setenv(f"DATABASE_OWNER_URL_{name.upper()}", settings.owner_dsn(name))
    data = tmp_path / "data"

    assert run_migrations(data) == {name: [] for name in NAMES}
    assert not data.exists()


@pytest.mark.usefixtures("_two_owners")
@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["first_things"], "DATABASE_URL or DATABASE_OWNER_URL_SECOND_THINGS: is needed"),
        (["first_things", "secnd_things"], "DATABASE_OWNER_URL_SECND_THINGS: there is no such"),
    ],
)
def test_a_database_that_is_not_named_beside_others_is_refused_and_not_embedded(
    names: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(f"DATABASE_OWNER_URL_{name.upper()}", "postgresql://a:b@127.0.0.1:1/a")
    data = tmp_path / "data"

    with pytest.raises(SettingsError, match=complaint):
        run_migrations(data)
    assert not data.exists()


@pytest.mark.usefixtures("_two_owners")
def test_roles_are_not_made_by_a_secret_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://a:b@127.0.0.1:1/postgres")

    with pytest.raises(SettingsError, match="MINDWEAVE_SECRET: is needed and not set"):
        run_migrations(tmp_path / "data")


@pytest.mark.usefixtures("_two_owners")
def test_without_a_name_the_folder_is_migrated_and_may_still_choose_its_broker(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"

    assert list(run_migrations(data)) == list(NAMES)
    assert run_migrations(data) == {name: [] for name in NAMES}
    assert {file.name for file in data.iterdir()} & {"events", "broker", "cache", "kafka"} == set()


async def test_a_migration_that_is_asked_to_end_stops_the_server_that_it_has_started(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fleet", "migrate", f"--data={data}"), env=without_settings()
    )
    await eventually((data / "postgres.pid").exists)
    server = psutil.Process(int((data / "postgres.pid").read_text()))
    command.send_signal(signal.SIGTERM)
    assert await command.wait() == 128 + signal.SIGTERM
    assert not server.is_running()
    assert not (data / "postgres.pid").exists()
