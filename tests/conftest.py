"""Real servers for the tests: one PostgreSQL and one Valkey for the whole run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from common.clock import SystemClock
from common.database import Database, bootstrap, migrate
from common.events.envelope import Envelope, decode
from common.settings import Settings, load_settings
from fleet.embedded import Postgres, Valkey
from tests import variants

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("unit", "store", "rpc", "bus", "e2e")
SECRET = "a secret of the tests, longer than needed"

Published = Callable[[], Awaitable[list[Envelope]]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the platform runs on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts", type=Path, help="write there how many tests ended how, as JSON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test is of one kind, so that every one runs in `make test`, once."""
    wrong = [
        item.nodeid
        for item in items
        if sum(item.get_closest_marker(kind) is not None for kind in KINDS) != 1
    ]
    if wrong:
        raise pytest.UsageError(f"not of one kind of {', '.join(KINDS)}: {', '.join(wrong)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The store tests about tables that grow run on every server that is given."""
    path = metafunc.definition.path.relative_to(ROOT / "tests")
    about = any(path.is_relative_to(where) for where in variants.TESTS)
    runs = about and metafunc.definition.get_closest_marker("store")
    if runs and "variant" in metafunc.fixturenames and (found := variants.given()):
        metafunc.parametrize("variant", [variants.PLAIN, *found], indirect=True, scope="session")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    file: Path | None = config.getoption("--counts")
    if file is not None:
        ends = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        counts = {end: len(terminalreporter.stats.get(end, ())) for end in ends}
        file.write_text(json.dumps({end: count for end, count in counts.items() if count}))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """An embedded PostgreSQL of this run; ``admin_dsn`` is its superuser's."""
    server = Postgres(tmp_path_factory.mktemp("pg") / "postgres", "password")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """An embedded Valkey of this run that keeps what it acknowledges; ``url`` reaches it."""
    server = Valkey(tmp_path_factory.mktemp("vk") / "broker", "password", durable=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def variant(request: pytest.FixtureRequest) -> str:
    """Which server the databases of the test are on: "plain", "timescaledb" or "citus"."""
    return getattr(request, "param", variants.PLAIN)


@pytest.fixture(scope="session")
def settings(
    variant: str, postgres: Postgres, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    return load_settings(
        secret=SECRET,
        database_url=variants.given().get(variant, postgres.admin_dsn),
        redis_url=valkey.url,
        cache_url=valkey.url,
        data=tmp_path_factory.mktemp("data"),
    )


@pytest.fixture(scope="module")
async def service_database(
    variant: str, settings: Settings
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """A function that makes the database of the service that it is given the name of.

    The database is empty, migrated and the test module's own; what is returned is its
    ``Database`` as the runtime role. ``folder`` names other migrations than the service's.
    """
    from common.testing import sealer_of, silent_telemetry

    async with AsyncExitStack() as stack:

        async def make(name: str, folder: Path | None = None, **options: Any) -> Database:
            admin_dsn = settings.database_url or ""
            stack.push_async_callback(variants.drop_database, admin_dsn, name)
            if variant != variants.PLAIN:
                await variants.make_database(variant, admin_dsn, name)
            await bootstrap(admin_dsn, name, settings)
            migrations = folder or ROOT / "services" / name / "migrations"
            await migrate(settings.owner_dsn(name), name, migrations)
            given: dict[str, Any] = {
                "name": name,
                "size": 4,
                "clock": SystemClock(),
                "sealer": sealer_of(settings, name),
                "telemetry": silent_telemetry(name),
            }
            database = await Database.open(settings.runtime_dsn(name), **given | options)
            stack.push_async_callback(database.close)
            return database

        yield make


@pytest.fixture
async def published(database: Database) -> Published:
    """Reads what this test has written to the outbox so far, in order."""
    async with database.session() as connection:
        start = await connection.fetchval("SELECT coalesce(max(id), 0) FROM outbox")

    async def read() -> list[Envelope]:
        async with database.session() as connection:
            rows = await connection.fetch(
                "SELECT value FROM outbox WHERE id > $1 ORDER BY id", start
            )
        return [decode(row["value"]) for row in rows]

    return read
