"""The database of a service that counts, and an outbox that each test finds empty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from common.clock import ManualClock
from common.database import Database
from tests.common.outboxes import COUNTERS, NAME, START


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_counters.sql").write_text(COUNTERS)
    return await service_database(NAME, folder, size=8, clock=ManualClock(START))


@pytest.fixture(autouse=True)
async def _empty_outbox(db: Database) -> AsyncIterator[None]:
    yield
    async with db.session() as connection:
        await connection.execute("DELETE FROM outbox")
